"""The hypernetwork inside ComfyUI's sampling: the one file that knows ModelPatcher and guiders.

ComfyUI runs the wrapper registered here when a sampler is about to start. At that moment the model
is loaded, the prompts are encoded and the noise lies on the model's device. The wrapper runs the
model once with the hypernetwork's branches attached, adds the result to the noise, and hands over
to the sampler.
"""

import logging
import math
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.model_sampling
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ..hypernoise_core.adapter import AdapterError
from ..hypernoise_core.hypernetwork import NoiseHypernetwork, modulate

KEY = "hypernoise"
LOG = logging.getLogger("hypernoise")


class WholeModelPatcher(ModelPatcher):
    """A ModelPatcher that is on its device as a whole or not at all.

    ComfyUI can keep a part of a model in main memory only if the model is built of ComfyUI's own
    layers, which move their weights when they run. The layers of diffusers and transformers, and
    the branches of a hypernetwork, do not.
    """

    def partially_load(self, device_to, extra_memory=0, force_patch_weights=False):
        return super().partially_load(device_to, 1e32, force_patch_weights)

    def partially_unload(self, device_to, memory_to_free=0, force_patch_weights=False):
        return 0  # nothing freed; ComfyUI then unloads the model completely


@dataclass(frozen=True)
class Hypernoise:
    """The value of the type HYPERNOISE: a hypernetwork that ComfyUI's memory management moves."""

    name: str
    patcher: ModelPatcher

    @classmethod
    def of(cls, hypernetwork: NoiseHypernetwork, name: str) -> "Hypernoise":
        """Wrap a loaded hypernetwork; `name` is what messages call it."""
        holder = _Holder(hypernetwork.requires_grad_(False).eval())
        device = comfy.model_management.get_torch_device()
        offload_device = comfy.model_management.unet_offload_device()
        return cls(name, WholeModelPatcher(holder, device, offload_device))

    @property
    def hypernetwork(self) -> NoiseHypernetwork:
        """The core's module, on the device where ComfyUI has put it."""
        return self.patcher.model.hypernetwork


class _Holder(torch.nn.Module):
    """Takes the attributes that ModelPatcher writes on its model, `device` among them."""

    def __init__(self, hypernetwork: NoiseHypernetwork) -> None:
        super().__init__()
        self.hypernetwork = hypernetwork


def apply(model: ModelPatcher, hypernoise: Hypernoise, strength: float) -> ModelPatcher:
    """A clone of `model` that modulates the noise; `model` itself at strength 0.

    Hypernetworks applied to one model one after the other add up, all computed on the original
    noise.

    Raises:
        AdapterError: the hypernetwork does not fit the model's network.
    """
    if strength == 0:
        return model
    try:
        hypernoise.hypernetwork.check_fits(model.model.diffusion_model)
    except AdapterError as error:
        raise AdapterError(f"{hypernoise.name}: {error}") from error
    parts = [(hypernoise, strength)]
    for earlier in model.get_wrappers(WrappersMP.SAMPLER_SAMPLE, KEY):
        parts = [*earlier.parts, *parts]
    modulated = model.clone()
    modulated.remove_wrappers_with_key(WrappersMP.SAMPLER_SAMPLE, KEY)
    modulated.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, NoiseModulation(parts))
    # ComfyUI loads these beside the model before it samples.
    patchers = list(dict.fromkeys(part.patcher for part, _ in parts))
    modulated.set_additional_models(KEY, patchers)
    return modulated


class NoiseModulation:
    """The SAMPLER_SAMPLE wrapper: modulates the noise, then lets the sampler run."""

    def __init__(self, parts: list[tuple[Hypernoise, float]]) -> None:
        self.parts = parts
        self._said: set[str] = set()

    def __call__(
        self,
        executor: Any,
        guider: comfy.samplers.CFGGuider,
        sigmas: torch.Tensor,
        extra_args: dict,
        callback: Any,
        noise: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Arguments and result are those of ComfyUI's `Sampler.sample`; noise (B, C, H, W)."""
        reason = _reason_to_leave(guider, sigmas, noise)
        if reason is None:
            noise = modulate(noise, self.delta(guider, sigmas, noise))
        elif reason:
            self._say_once(reason)
        return executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)

    def delta(
        self, guider: comfy.samplers.CFGGuider, sigmas: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """Sum of strength * f(noise) over the hypernetworks, like `noise`."""
        if noise.ndim != 4:
            raise ValueError(
                f"Apply Noise Hypernetwork works on image latents of shape (batch, channels, "
                f"height, width), this one has {noise.ndim} dimensions. Take the node out of "
                f"workflows for video, audio or combined latents."
            )
        total = torch.zeros_like(noise)
        for hypernoise, strength in self.parts:
            comfy.model_management.throw_exception_if_processing_interrupted()
            with hypernoise.hypernetwork.attached(guider.inner_model.diffusion_model):
                total += strength * network_output(guider, sigmas, noise)
        return total

    def _say_once(self, reason: str) -> None:
        if reason not in self._said:
            self._said.add(reason)
            names = ", ".join(hypernoise.name for hypernoise, _ in self.parts)
            LOG.warning("HyperNoise: %s is not used: %s", names, reason)


def _reason_to_leave(
    guider: comfy.samplers.CFGGuider, sigmas: torch.Tensor, noise: torch.Tensor
) -> str | None:
    """Why the noise must stay as it is; None if it is to be modulated, "" if nobody needs to know.

    The hypernetwork knows only pure noise at the highest noise level.
    """
    if comfy.model_management.in_training:
        return ""  # ComfyUI's training nodes pass through here with made-up sigmas
    if torch.count_nonzero(noise) == 0:
        return "the sampler adds no noise (add_noise is off), there is nothing to modulate."
    start, highest = float(sigmas[0]), float(guider.inner_model.model_sampling.sigma_max)
    if start < highest and not math.isclose(start, highest, rel_tol=1e-5):
        return (
            f"sampling starts at sigma {start:.4g} instead of {highest:.4g} (denoise below 1 or a "
            f"later first step), where the noise is already mixed with an image."
        )
    if not guider.conds.get("positive"):
        return "the sampler has no positive conditioning to read the prompt from."
    return None


def network_output(
    guider: comfy.samplers.CFGGuider, sigmas: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """The network's raw output at full noise for the positive prompt, (B, C, H, W) like `noise`.

    ComfyUI returns the denoised latent x0 = x - sigma * output, for flow models and for models
    that predict the noise alike; areas, masks and several prompts are weighted by ComfyUI.
    """
    model = guider.inner_model
    sampling = model.model_sampling
    if not isinstance(sampling, (comfy.model_sampling.CONST, comfy.model_sampling.EPS)):
        raise TypeError(
            f"Apply Noise Hypernetwork works with flow models and with models that predict the "
            f"noise; {type(model).__name__} is neither."
        )
    sigma = sigmas[0].expand(noise.shape[0])
    x = sampling.noise_scaling(sigmas[0], noise, torch.zeros_like(noise), max_denoise=True)
    # Fresh options: patches, caches and compiled modules of the sampling run must neither act in
    # this pass nor remember it.
    options = {"transformer_options": {"sample_sigmas": sigmas}}
    conditioning = [_plain(cond) for cond in guider.conds["positive"]]
    x0 = comfy.samplers.calc_cond_batch(model, [conditioning], x, sigma, options)[0]
    # Where no prompt is active (areas, time ranges) ComfyUI returns exact zeros.
    covered = x0.ne(0).any(dim=1, keepdim=True)
    return torch.where(covered, (x - x0) / sigmas[0], torch.zeros_like(x))


def _plain(cond: dict) -> dict:
    """A prompt without what acts on the sampling of the image (ControlNet, GLIGEN)."""
    return {key: value for key, value in cond.items() if key not in ("control", "gligen")}
