"""The hypernetwork inside ComfyUI's sampling: the one file that knows ModelPatcher and guiders.

ComfyUI runs the wrapper registered here when a sampler is about to start. At that moment the model
is loaded, the prompts are encoded and the noise lies on the model's device. The wrapper runs the
model once with the hypernetwork's branches attached, adds the result to the noise, and hands over
to the sampler.
"""

import logging
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ..hypernoise_core.adapter import AdapterError
from ..hypernoise_core.hypernetwork import NoiseHypernetwork, modulate
from ..hypernoise_core.lora import LoraTarget
from . import less_memory
from .delta_cache import DeltaCache, UncacheableError, digest
from .layer_names import layer_targets, output_sign

KEY = "hypernoise"
LOG = logging.getLogger("hypernoise")
LEAVE, SCALE = "leave the noise alone", "scale the change by sigma"
PARTIAL_NOISE = (LEAVE, SCALE)  # what to do where sampling starts below full noise
STOP, PLAIN = "stop", "use the plain noise"
OUT_OF_MEMORY = (STOP, PLAIN)  # what to do where there is no memory even for a pass of one image


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


def manage(module: torch.nn.Module) -> WholeModelPatcher:
    """Hand a frozen module to ComfyUI's memory management; it is `.model.module` of the result."""
    holder = _Holder(module.requires_grad_(False).eval())
    device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    return WholeModelPatcher(holder, device, offload_device)


class _Holder(torch.nn.Module):
    """Takes the attributes that ModelPatcher writes on its model, `device` among them."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module


@dataclass(frozen=True)
class Hypernoise:
    """The value of the type HYPERNOISE: a hypernetwork that ComfyUI's memory management moves."""

    name: str
    patcher: ModelPatcher
    cache: DeltaCache = field(default_factory=DeltaCache, compare=False)

    @classmethod
    def of(cls, hypernetwork: NoiseHypernetwork, name: str) -> "Hypernoise":
        """Wrap a loaded hypernetwork; `name` is what messages call it."""
        return cls(name, manage(hypernetwork))

    @property
    def hypernetwork(self) -> NoiseHypernetwork:
        """The core's module, on the device where ComfyUI has put it."""
        return self.patcher.model.module


@dataclass(frozen=True)
class Part:
    """One hypernetwork on a model, and how it is used there."""

    hypernoise: Hypernoise
    targets: dict[str, LoraTarget]
    strength: float
    noise_prompt: list | None
    """A CONDITIONING that the hypernetwork reads in place of the sampler's positive prompt."""
    at_partial_noise: str
    """One of `PARTIAL_NOISE`."""
    out_of_memory: str
    """One of `OUT_OF_MEMORY`."""


def apply(
    model: ModelPatcher,
    hypernoise: Hypernoise,
    strength: float,
    noise_prompt: list | None = None,
    at_partial_noise: str = LEAVE,
    out_of_memory: str = STOP,
) -> ModelPatcher:
    """A clone of `model` that modulates the noise; `model` itself at strength 0.

    Hypernetworks applied to one model one after the other add up, all computed on the original
    noise.

    Raises:
        AdapterError: the hypernetwork does not fit the model's network.
    """
    if strength == 0:
        return model
    hypernetwork = hypernoise.hypernetwork
    try:
        targets = layer_targets(model.model, hypernetwork.layer_names)
        hypernetwork.check_fits(model.model.diffusion_model, targets)
    except AdapterError as error:
        raise AdapterError(f"{hypernoise.name}: {error}") from error
    parts = [Part(hypernoise, targets, strength, noise_prompt, at_partial_noise, out_of_memory)]
    for earlier in model.get_wrappers(WrappersMP.SAMPLER_SAMPLE, KEY):
        parts = [*earlier.parts, *parts]
    modulated = model.clone()
    modulated.remove_wrappers_with_key(WrappersMP.SAMPLER_SAMPLE, KEY)
    modulated.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, NoiseModulation(parts))
    # ComfyUI loads these beside the model before it samples.
    patchers = list(dict.fromkeys(part.hypernoise.patcher for part in parts))
    modulated.set_additional_models(KEY, patchers)
    return modulated


@dataclass(frozen=True)
class SamplingRun:
    """What ComfyUI hands to a sampler; B, C, H, W are those of the latents."""

    guider: comfy.samplers.CFGGuider
    sigmas: torch.Tensor
    noise: torch.Tensor
    latent_image: torch.Tensor | None = None
    denoise_mask: torch.Tensor | None = None
    seed: int | None = None

    @property
    def model(self) -> Any:
        """The loaded BaseModel."""
        return self.guider.inner_model

    @property
    def model_objects(self) -> list[object]:
        """The model and what nodes have put in the place of its parts, by their names' order."""
        replaced = self.guider.model_patcher.object_patches
        return [self.model, *(replaced[name] for name in sorted(replaced))]

    @property
    def start(self) -> float:
        """The first sigma."""
        return float(self.sigmas[0])

    @property
    def full(self) -> float:
        """The sigma of pure noise, the only one that a hypernetwork knows."""
        return float(self.model.model_sampling.sigma_max)

    @property
    def starts_at_full_noise(self) -> bool:
        """Whether no image is mixed into the noise."""
        return self.start >= self.full or math.isclose(self.start, self.full, rel_tol=1e-5)

    def prompt(self, noise_prompt: list | None = None) -> list[dict]:
        """The sampler's positive conditioning, or this one, without ControlNet and GLIGEN."""
        if noise_prompt is None:
            conds = self.guider.conds.get("positive") or []
        else:
            conds = comfy.samplers.process_conds(
                self.model,
                self.noise,
                {"noise_prompt": comfy.sampler_helpers.convert_cond(noise_prompt)},
                self.noise.device,
                self.latent_image,
                self.denoise_mask,
                self.seed,
            )["noise_prompt"]
        return [
            {key: value for key, value in cond.items() if key not in ("control", "gligen")}
            for cond in conds
        ]


class NoiseModulation:
    """The SAMPLER_SAMPLE wrapper: modulates the noise, then lets the sampler run."""

    def __init__(self, parts: list[Part]) -> None:
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
        latent_image: torch.Tensor | None = None,
        denoise_mask: torch.Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Arguments and result are those of ComfyUI's `Sampler.sample`; noise (B, C, H, W)."""
        seed = extra_args.get("seed")
        delta = self.delta(SamplingRun(guider, sigmas, noise, latent_image, denoise_mask, seed))
        if delta is not None:
            noise = modulate(noise, delta)
        return executor(
            guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *args, **kwargs
        )

    def delta(self, run: SamplingRun) -> torch.Tensor | None:
        """Sum of strength * f(noise) over the hypernetworks; None if the noise stays as it is."""
        if comfy.model_management.in_training:
            return None  # ComfyUI's training nodes pass through here with made-up sigmas
        active = []
        for part in self.parts:
            prompt = run.prompt(part.noise_prompt)
            if reason := _reason_to_leave(run, part, prompt):
                self._say_once(f"{part.hypernoise.name} is not used: {reason}")
            else:
                active.append((part, prompt))
        if not active:
            return None
        total = torch.zeros_like(run.noise)
        progress = comfy.utils.ProgressBar(len(active))
        for part, prompt in active:
            comfy.model_management.throw_exception_if_processing_interrupted()
            share = 1.0 if run.starts_at_full_noise else run.start / run.full
            delta = predict(run, part, prompt)
            if delta is not None:
                total += part.strength * share * delta
            progress.update(1)
        return total

    def _say_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            LOG.warning("HyperNoise: %s", message)


def _reason_to_leave(run: SamplingRun, part: Part, prompt: list[dict]) -> str | None:
    """Why the noise must stay as it is; None if it is to be modulated."""
    if torch.count_nonzero(run.noise) == 0:
        return "the sampler adds no noise (add_noise is off), there is nothing to modulate."
    if not run.starts_at_full_noise and part.at_partial_noise == LEAVE:
        return (
            f"sampling starts at sigma {run.start:.4g} instead of {run.full:.4g} (denoise below 1, "
            f"a later first step, or the scheduler ddim_uniform), not from pure noise. "
            f"at_partial_noise on Apply Noise Hypernetwork changes that."
        )
    if not prompt:
        return "the sampler has no positive conditioning to read the prompt from."
    return None


def predict(run: SamplingRun, part: Part, prompt: list[dict]) -> torch.Tensor | None:
    """f(noise) of one hypernetwork, (B, C, H, W) like the noise; remembered from run to run.

    None: there is no memory for it, and the part asks for the plain noise then.

    Raises:
        ValueError: the latents are not those of images.
        AdapterError: the network ran past the layers that the hypernetwork acts on.
        OOM_EXCEPTION: the pass did not fit into memory, and the part asks to stop then.
    """
    if run.noise.ndim != 4:
        raise ValueError(
            f"Apply Noise Hypernetwork works on image latents of shape (batch, channels, height, "
            f"width), this one has {run.noise.ndim} dimensions. Take the node out of workflows for "
            f"video, audio or combined latents."
        )
    key = _cache_key(run, prompt)
    cache, owners = part.hypernoise.cache, run.model_objects
    if key is not None and (known := cache.find(owners, key)) is not None:
        return known.to(run.noise)
    delta = _unless_out_of_memory(_run_network, run, part, prompt)
    if delta is None:
        LOG.warning(
            "HyperNoise: no memory for the pass of %s; trying again, image by image, with other "
            "models unloaded.",
            part.hypernoise.name,
        )
        less_memory.free_memory(run.guider, run.noise.device)
        delta = _unless_out_of_memory(_run_image_by_image, run, part, prompt)
    if delta is None:
        shape = " x ".join(map(str, run.noise.shape))
        message = (
            f"Not enough memory for the pass of {part.hypernoise.name} on latents of {shape}, not "
            f"even image by image"
        )
        if part.out_of_memory == STOP:
            raise comfy.model_management.OOM_EXCEPTION(
                f"{message}. Take smaller images, or set out_of_memory on Apply Noise Hypernetwork "
                f"to '{PLAIN}'."
            )
        LOG.warning("HyperNoise: %s: this run uses the plain noise.", message)
    elif key is not None:
        cache.keep(owners, key, delta)
    return delta


def _unless_out_of_memory(
    compute: Callable[[SamplingRun, Part, list[dict]], torch.Tensor],
    run: SamplingRun,
    part: Part,
    prompt: list[dict],
) -> torch.Tensor | None:
    """The result; None where memory ran out. By then the error, which holds tensors, is gone."""
    try:
        return compute(run, part, prompt)
    except Exception as error:
        if not comfy.model_management.is_oom(error):
            raise
        return None


def _run_image_by_image(run: SamplingRun, part: Part, prompt: list[dict]) -> torch.Tensor:
    """What `_run_network` gives, with the activations of one image at a time."""
    deltas = []
    for i in range(len(run.noise)):
        comfy.model_management.throw_exception_if_processing_interrupted()
        image = replace(run, noise=run.noise[i : i + 1])
        deltas.append(_run_network(image, part, less_memory.prompt_of_images(prompt, [i])))
    return torch.cat(deltas)


def _cache_key(run: SamplingRun, prompt: list[dict]) -> Hashable | None:
    """What decides f beside adapter and model; None where that cannot be told."""
    patcher = run.guider.model_patcher
    replaced = tuple(sorted(patcher.object_patches))
    try:
        return patcher.patches_uuid, replaced, run.full, digest([run.noise, prompt])
    except UncacheableError:
        return None


def _run_network(run: SamplingRun, part: Part, prompt: list[dict]) -> torch.Tensor:
    """What f does to the noise: the raw output of diffusers' network with the branches on it.

    ComfyUI returns the denoised latent x0 = x - sigma * output, for flow models and for models
    that predict the noise alike; areas, masks and several prompts are weighted by ComfyUI.
    """
    sampling = run.model.model_sampling
    if not isinstance(sampling, (comfy.model_sampling.CONST, comfy.model_sampling.EPS)):
        raise TypeError(
            f"Apply Noise Hypernetwork works with flow models and with models that predict the "
            f"noise; {type(run.model).__name__} is neither."
        )
    sigma = torch.full_like(run.noise[:, 0, 0, 0], run.full)
    x = sampling.noise_scaling(sigma[0], run.noise, torch.zeros_like(run.noise), max_denoise=True)
    # Fresh options: patches, caches and compiled modules of the sampling run must neither act in
    # this pass nor remember it.
    options = {"transformer_options": {"sample_sigmas": run.sigmas}}
    with part.hypernoise.hypernetwork.attached(run.model.diffusion_model, part.targets) as ran:
        x0 = comfy.samplers.calc_cond_batch(run.model, [prompt], x, sigma, options)[0]
    # Where no prompt is active (areas, time ranges) ComfyUI returns exact zeros.
    covered = x0.ne(0).any(dim=1, keepdim=True)
    missed = sorted({target.module for target in part.targets.values()} - ran)
    if missed and covered.any():
        raise AdapterError(
            f"{part.hypernoise.name}: {type(run.model.diffusion_model).__name__} ran without "
            f"calling {len(missed)} of its layers ({missed[0]} for one), so the hypernetwork "
            f"cannot act on them. Models with fused kernels do that; load the model another way."
        )
    output = output_sign(run.model) * (x - x0) / run.full
    delta = part.hypernoise.hypernetwork.delta(output, run.noise)
    return torch.where(covered, delta, torch.zeros_like(x))


def modulated_noise(
    model: ModelPatcher, positive: list, noise: torch.Tensor, seed: int
) -> torch.Tensor:
    """The noise that samplers of `model` (from `apply`) start from.

    Args:
        positive: the CONDITIONING that a sampler would get.
        noise: (B, C, H, W), on the CPU.

    Returns:
        Like `noise`. ComfyUI loads the model for it, as for sampling.
    """
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive})
    highest = model.get_model_object("model_sampling").sigma_max
    sampler = _NoiseTaker()
    guider.sample(
        noise,
        torch.zeros_like(noise),
        sampler,
        torch.tensor([float(highest), 0.0]),
        disable_pbar=True,
        seed=seed,
    )
    return sampler.noise.to(noise)


class _NoiseTaker(comfy.samplers.Sampler):
    """A sampler that only looks at the noise it is given."""

    noise: torch.Tensor

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, *args, **kwargs
    ) -> torch.Tensor:
        self.noise = noise
        return noise


def to_graph_latent(model: ModelPatcher, latents: torch.Tensor) -> torch.Tensor:
    """From the latents a sampler works on to those that VAE Decode takes, (B, C, H, W)."""
    return model.model.process_latent_out(latents)


def latent_for(model: ModelPatcher, latent: dict) -> dict:
    """The LATENT as samplers adapt it: an empty one gets the model's channels and size.

    Raises:
        ValueError: it is a batch of none.
    """
    if not len(latent["samples"]):
        raise ValueError("latent holds no image: it is an empty batch; give at least one.")
    latent = dict(latent)
    ratio = latent.pop("downscale_ratio_spacial", None)
    latent["samples"] = comfy.sample.fix_empty_latent_channels(model, latent["samples"], ratio)
    return latent
