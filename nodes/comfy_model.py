"""The hypernetwork inside ComfyUI's sampling: the file that knows ModelPatcher and its wrappers.

ComfyUI runs the wrapper registered here when a sampler is about to start. At that moment the model
is loaded, the prompts are encoded and the noise lies on the model's device. The wrapper runs the
model once with the hypernetwork's branches attached, adds the result to the noise, and hands over
to the sampler.
"""

import copy
import logging
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.hooks
import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ..hypernoise_core.errors import AdapterError
from ..hypernoise_core.execution import turn_of
from ..hypernoise_core.hypernetwork import NoiseHypernetwork, modulate
from ..hypernoise_core.lora_branch import LoraTarget
from . import less_memory
from .delta_cache import DeltaCache, UncacheableError, digest
from .layer_names import layer_targets, output_sign
from .sampling_run import SamplingRun

KEY = "hypernoise"
LOG = logging.getLogger("hypernoise")
LEAVE, SCALE = "leave the noise alone", "scale the change by sigma"
PARTIAL_NOISE = (LEAVE, SCALE)  # what to do where sampling starts below full noise
STOP, PLAIN = "stop", "use the plain noise"
OUT_OF_MEMORY = (STOP, PLAIN)  # what to do where there is no memory even for a pass of one image
_WEIGHT_HOOK = comfy.hooks.EnumHookType.Weight


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

    def made_by(self, make: Callable[[], "WholeModelPatcher"]) -> "WholeModelPatcher":
        """Itself, knowing how to be made again: that is how ComfyUI copies a model to another GPU.

        Args:
            make: gives one with weights of its own, as they were before anything patched them.
        """
        self.cached_patcher_init = (lambda disable_dynamic=True: make(), ())
        return self


def manage(module: torch.nn.Module) -> WholeModelPatcher:
    """Hand a frozen module to ComfyUI's memory management; it is `.model.module` of the result."""
    holder = _Holder(module.requires_grad_(False).eval())
    device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    patcher = WholeModelPatcher(holder, device, offload_device)
    # Nothing patches such a module, so a copy is as good as one that is loaded anew.
    return patcher.made_by(lambda: manage(copy.deepcopy(module)))


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

    def with_patcher(self, patcher: ModelPatcher) -> "Part":
        """The same with another patcher of its hypernetwork."""
        return replace(self, hypernoise=replace(self.hypernoise, patcher=patcher))


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
    modulated = _clone_with_hooks(model, noise_prompt or [])
    wrappers = {
        WrappersMP.SAMPLER_SAMPLE: NoiseModulation(parts),
        WrappersMP.PREPARE_SAMPLING: _prepare_on_the_model_s_device,
        WrappersMP.OUTER_SAMPLE: _one_thread_at_a_time,
    }
    for kind, wrapper in wrappers.items():
        modulated.remove_wrappers_with_key(kind, KEY)
        modulated.add_wrapper_with_key(kind, KEY, wrapper)
    # ComfyUI loads these beside the model before it samples.
    modulated.set_additional_models(KEY, [patcher.clone() for patcher in _patchers(parts)])
    return modulated


def _patchers(parts: Iterable[Part]) -> list[ModelPatcher]:
    """Those of the parts' hypernetworks, each once."""
    return list(dict.fromkeys(part.hypernoise.patcher for part in parts))


def _prepare_on_the_model_s_device(
    executor: Any, model: ModelPatcher, *args: Any, **kwargs: Any
) -> Any:
    """The PREPARE_SAMPLING wrapper: nodes may have moved the model since it got its hypernetworks.

    Arguments and result are those of ComfyUI's `prepare_sampling`.
    """
    for patcher in model.get_additional_models_with_key(KEY):
        patcher.load_device = model.load_device
    return executor(model, *args, **kwargs)


def _one_thread_at_a_time(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """The OUTER_SAMPLE wrapper: for servers and nodes that sample in threads of their own.

    In a pass of a hypernetwork not only the network is another one, but also the model's sampling.
    """
    with turn_of(executor.class_obj.model_patcher.model.diffusion_model):
        return executor(*args, **kwargs)


def _clone_with_hooks(model: ModelPatcher, prompt: list) -> ModelPatcher:
    """A clone that can act on the LoRA hooks of a prompt that no sampler sees.

    ComfyUI registers those of a sampler's prompts on the model when sampling begins.
    """
    hooks = [
        hook
        for _, extra in prompt
        for hook in (extra.get("hooks") or comfy.hooks.HookGroup()).get_type(_WEIGHT_HOOK)
    ]
    # As for a sampler's prompts: ComfyUI cannot patch weights that it streams.
    streams = bool(hooks) and model.is_dynamic()
    clone = model.get_non_dynamic_delegate() if streams else model.clone()
    target = comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model)
    for hook in hooks:
        if hook.hook_ref not in clone.hook_patches:
            hook.add_hook_patches(clone, clone.model_options, target, comfy.hooks.HookGroup())
    return clone


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
        for part in self._loaded_parts(run):
            prompt = run.prompt(part.noise_prompt)
            if reason := _reason_to_leave(run, part, prompt):
                self._say_once(logging.WARNING, f"{part.hypernoise.name} is not used: {reason}")
            else:
                active.append((part, run.active(prompt)))
        if not active:
            return None
        total = torch.zeros_like(run.noise)
        share = 1.0 if run.starts_from_noise_alone else run.start / run.full
        progress = comfy.utils.ProgressBar(len(active))
        for part, prompt in active:
            comfy.model_management.throw_exception_if_processing_interrupted()
            if not run.starts_at_full_noise:
                self._say_once(logging.INFO, f"{part.hypernoise.name} {_use_below_full(run)}")
            delta = predict(run, part, prompt)
            if delta is not None:
                total += part.strength * share * delta
            progress.update(1)
        return total

    def _loaded_parts(self, run: SamplingRun) -> list[Part]:
        """The parts with the hypernetworks that ComfyUI has loaded beside the run's model.

        Where a node has moved the model to another GPU, those are copies.
        """
        beside = run.guider.model_patcher.get_additional_models_with_key(KEY)
        loaded = dict(zip(_patchers(self.parts), beside, strict=True))
        return [part.with_patcher(loaded[part.hypernoise.patcher]) for part in self.parts]

    def _say_once(self, level: int, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            LOG.log(level, "HyperNoise: %s", message)


def _reason_to_leave(run: SamplingRun, part: Part, prompt: list[dict]) -> str | None:
    """Why the noise must stay as it is; None if it is to be modulated."""
    if not run.uses_noise:
        return (
            "the sampler adds no noise (add_noise is off, or the model starts from the latent "
            "alone), there is nothing to modulate."
        )
    if not run.starts_from_noise_alone and part.at_partial_noise == LEAVE:
        return (
            f"sampling starts at sigma {run.start:.4g} instead of {run.full:.4g} on a latent that "
            f"is not empty (denoise below 1, a later first step, or a scheduler that begins "
            f"lower), so an image is mixed into the noise. at_partial_noise changes that."
        )
    if not prompt:
        return "the sampler has no positive conditioning to read the prompt from."
    if not run.active(prompt):
        return (
            f"no prompt is active at sigma {run.start:.4g}, where sampling starts; the time ranges "
            f"of its prompts begin later or end before."
        )
    return None


def _use_below_full(run: SamplingRun) -> str:
    """What is done with the change where sampling starts below full noise."""
    start = f"sampling starts at sigma {run.start:.4g} instead of {run.full:.4g}"
    if run.starts_from_noise_alone:
        return f"is used in full: {start}, but on an empty latent, so from noise alone."
    return f"is used with its change times {run.start / run.full:.4g}: {start} (at_partial_noise)."


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
            f"A noise hypernetwork works on image latents of shape (batch, channels, height, "
            f"width), this one has {run.noise.ndim} dimensions. Take its node out of workflows for "
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
        return patcher.patches_uuid, replaced, digest([run.noise, prompt])
    except UncacheableError:
        return None


def _run_network(run: SamplingRun, part: Part, prompt: list[dict]) -> torch.Tensor:
    """What f does to the noise: the raw output of diffusers' network with the branches on it."""
    hypernetwork, network = part.hypernoise.hypernetwork, run.model.diffusion_model
    with hypernetwork.attached(network, part.targets) as ran:
        output, covered = run.raw_output(prompt)
    missed = sorted({target.module for target in part.targets.values()} - ran)
    if missed and covered.any():
        raise AdapterError(
            f"{part.hypernoise.name}: {type(network).__name__} ran without calling {len(missed)} "
            f"of its layers ({missed[0]} for one), so the hypernetwork cannot act on them. Models "
            f"with fused kernels do that; load the model another way."
        )
    delta = hypernetwork.change(output_sign(run.model) * output, run.noise).delta
    return torch.where(covered, delta, torch.zeros_like(delta))


def modulated_noise(
    model: ModelPatcher,
    positive: list,
    noise: torch.Tensor,
    seed: int,
    latent: dict | None = None,
    sigmas: torch.Tensor | None = None,
) -> torch.Tensor:
    """The noise that samplers of `model` (from `apply`) start from.

    Args:
        positive: the CONDITIONING that a sampler would get.
        noise: (B, C, H, W), on the CPU.
        latent: the LATENT that it would start on; None: an empty one.
        sigmas: its SIGMAS; None: it starts at full noise.

    Returns:
        Like `noise`. ComfyUI loads the model for it, as for sampling.
    """
    latent = latent or {"samples": torch.zeros_like(noise)}
    if sigmas is None:
        sigmas = torch.tensor([float(model.get_model_object("model_sampling").sigma_max), 0.0])
    if len(sigmas) == 0:
        return noise  # as no sampler runs
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive})
    sampler = _NoiseTaker()
    guider.sample(
        noise,
        latent["samples"],
        sampler,
        sigmas,
        denoise_mask=latent.get("noise_mask"),
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
