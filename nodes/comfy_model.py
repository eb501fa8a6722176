"""The hypernetwork inside ComfyUI's sampling: the file that knows ModelPatcher and its wrappers.

ComfyUI runs the wrapper registered here when a sampler is about to start. At that moment the model
is loaded, the prompts are encoded and the noise is on the model's device. The wrapper runs the
model once with the hypernetwork's branches attached, adds the result to the noise, and calls the
sampler.
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
from .sampling_run import SamplingRun, run_sampler

KEY = "hypernoise"
LOG = logging.getLogger("hypernoise")
LEAVE, SCALE = "leave the noise alone", "scale the change by sigma"
PARTIAL_NOISE = (LEAVE, SCALE)  # what to do when sampling starts below full noise
STOP, PLAIN = "stop", "use the plain noise"
OUT_OF_MEMORY = (STOP, PLAIN)  # what to do if not even one image fits
_WEIGHT_HOOK = comfy.hooks.EnumHookType.Weight


class WholeModelPatcher(ModelPatcher):
    """A ModelPatcher that is either entirely on its device or not at all.

    ComfyUI can keep part of a model in main memory only if the model consists of ComfyUI's own
    layers, which move their weights when they run. The layers of diffusers and transformers, and
    the branches of a hypernetwork, do not.
    """

    def partially_load(self, device_to, extra_memory=0, force_patch_weights=False):
        # More bytes than any model has, so that all of it is loaded.
        return super().partially_load(device_to, 1e32, force_patch_weights)

    def partially_unload(self, device_to, memory_to_free=0, force_patch_weights=False):
        return 0  # nothing freed; ComfyUI then unloads the model completely

    def with_factory(self, factory: Callable[[], "WholeModelPatcher"]) -> "WholeModelPatcher":
        """Itself, with what ComfyUI calls to copy the model to another GPU.

        Args:
            factory: returns a patcher with weights of its own, unpatched.
        """
        # ComfyUI asks by keyword for a patcher that does not stream its weights; ours never does.
        self.cached_patcher_init = (lambda disable_dynamic=True: factory(), ())
        return self


def manage(module: torch.nn.Module) -> WholeModelPatcher:
    """Hand a frozen module to ComfyUI's memory management; it is `.model.module` of the result."""
    holder = _Holder(module.requires_grad_(False).eval())
    device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    patcher = WholeModelPatcher(holder, device, offload_device)
    # Such a module is never patched, so a copy is as good as loading it again.
    return patcher.with_factory(lambda: manage(copy.deepcopy(module)))


class _Holder(torch.nn.Module):
    """Holds the attributes that ModelPatcher sets on its model, such as `device`."""

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
        """Wrap a loaded hypernetwork; `name` is used in messages."""
        return cls(name, manage(hypernetwork))

    @property
    def hypernetwork(self) -> NoiseHypernetwork:
        """The core's module, on the device that ComfyUI chose."""
        return self.patcher.model.module


@dataclass(frozen=True)
class Part:
    """One hypernetwork on a model, and how it is used there."""

    hypernoise: Hypernoise
    targets: dict[str, LoraTarget]
    strength: float
    noise_prompt: list | None
    """A CONDITIONING for the hypernetwork instead of the sampler's positive prompt."""
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
    for patcher in model.get_additional_models_with_key(KEY):  # clones that only this model has
        patcher.load_device = model.load_device
    return executor(model, *args, **kwargs)


def _one_thread_at_a_time(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """The OUTER_SAMPLE wrapper: for servers and nodes that sample in several threads.

    During a hypernetwork's pass, both the network and the model's sampling are replaced.
    """
    with turn_of(executor.class_obj.model_patcher.model.diffusion_model):
        return executor(*args, **kwargs)


def _clone_with_hooks(model: ModelPatcher, prompt: list) -> ModelPatcher:
    """A clone with the LoRA hooks of a prompt that no sampler sees.

    ComfyUI itself registers only the hooks of a sampler's prompts, when sampling starts.
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
        self._logged: set[str] = set()

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
            return None  # ComfyUI's training nodes call samplers with made-up sigmas
        active = []
        for part in self._loaded_parts(run):
            prompt = run.prompt(part.noise_prompt)
            if reason := _reason_to_skip(run, part, prompt):
                self._log_once(logging.WARNING, f"{part.hypernoise.name} is not used: {reason}")
            else:
                active.append((part, run.active(prompt)))
        if not active:
            return None
        total = torch.zeros_like(run.noise)
        share = 1.0 if run.starts_from_noise_alone else run.first_sigma / run.sigma_max
        progress = comfy.utils.ProgressBar(len(active))
        for part, prompt in active:
            comfy.model_management.throw_exception_if_processing_interrupted()
            if not run.starts_at_full_noise:
                self._log_once(logging.INFO, f"{part.hypernoise.name} {_use_below_full(run)}")
            delta = predict(run, part, prompt)
            if delta is not None:
                total += part.strength * share * delta
            progress.update(1)
        return total

    def _loaded_parts(self, run: SamplingRun) -> list[Part]:
        """The parts with the hypernetworks that ComfyUI has loaded beside the run's model.

        These are copies if a node has moved the model to another GPU.
        """
        beside = run.guider.model_patcher.get_additional_models_with_key(KEY)
        loaded = dict(zip(_patchers(self.parts), beside, strict=True))
        return [part.with_patcher(loaded[part.hypernoise.patcher]) for part in self.parts]

    def _log_once(self, level: int, message: str) -> None:
        if message not in self._logged:
            self._logged.add(message)
            LOG.log(level, "HyperNoise: %s", message)


def _reason_to_skip(run: SamplingRun, part: Part, prompt: list[dict]) -> str | None:
    """Why the noise must not be changed; None if it is to be modulated."""
    if not run.uses_noise:
        return (
            "the sampler adds no noise (add_noise is disabled, or the model starts from the latent "
            "alone), so there is nothing to modulate."
        )
    if not run.starts_from_noise_alone and part.at_partial_noise == LEAVE:
        return (
            f"sampling starts at sigma {run.first_sigma:.4g} instead of {run.sigma_max:.4g} on a "
            f"latent that is not empty (denoise below 1, a later first step, or a scheduler that "
            f"starts lower), so an image is mixed into the noise. To use the hypernetwork anyway, "
            f"set at_partial_noise to '{SCALE}'."
        )
    if not prompt:
        return "the sampler has no positive conditioning, so the hypernetwork has no prompt."
    if not run.active(prompt):
        return (
            f"no prompt is active at sigma {run.first_sigma:.4g}, where sampling starts. The time "
            f"ranges of all prompts start later or end earlier."
        )
    return None


def _use_below_full(run: SamplingRun) -> str:
    """How the change is used when sampling starts below full noise."""
    start = f"sampling starts at sigma {run.first_sigma:.4g} instead of {run.sigma_max:.4g}"
    if run.starts_from_noise_alone:
        return f"is used in full: {start}, but the latent is empty, so no image is mixed in."
    share = run.first_sigma / run.sigma_max
    return f"is used with its change multiplied by {share:.4g}: {start} (at_partial_noise)."


def predict(run: SamplingRun, part: Part, prompt: list[dict]) -> torch.Tensor | None:
    """f(noise) of one hypernetwork, (B, C, H, W) like the noise; cached between runs.

    None if it does not fit into memory and the part asks for the plain noise in that case.

    Raises:
        ValueError: the latents are not those of images.
        AdapterError: the network ran past the layers that the hypernetwork acts on.
        OOM_EXCEPTION: it does not fit into memory and the part asks to stop in that case.
    """
    if run.noise.ndim != 4:
        raise ValueError(
            f"A noise hypernetwork needs image latents of shape (batch, channels, height, width), "
            f"but this latent has {run.noise.ndim} dimensions. Remove the hypernetwork from "
            f"workflows with video, audio or combined latents."
        )
    key = _cache_key(run, prompt)
    cache, owners = part.hypernoise.cache, run.model_objects
    if key is not None and (known := cache.find(owners, key)) is not None:
        return known.to(run.noise)
    delta = _none_if_out_of_memory(_run_network, run, part, prompt)
    if delta is None:
        LOG.warning(
            "HyperNoise: not enough memory for the pass of %s. Trying again with other models "
            "unloaded, one image at a time.",
            part.hypernoise.name,
        )
        less_memory.free_memory(run.guider, run.noise.device)
        delta = _none_if_out_of_memory(_run_image_by_image, run, part, prompt)
    if delta is None:
        shape = " x ".join(map(str, run.noise.shape))
        message = (
            f"Not enough memory for the pass of {part.hypernoise.name} on latents of {shape}, even "
            f"one image at a time."
        )
        if part.out_of_memory == STOP:
            raise comfy.model_management.OOM_EXCEPTION(
                f"{message} Use smaller images, or set out_of_memory in Apply Noise Hypernetwork "
                f"to '{PLAIN}'."
            )
        LOG.warning("HyperNoise: %s This run uses the plain noise.", message)
    elif key is not None:
        cache.keep(owners, key, delta)
    return delta


def _none_if_out_of_memory(
    compute: Callable[[SamplingRun, Part, list[dict]], torch.Tensor],
    run: SamplingRun,
    part: Part,
    prompt: list[dict],
) -> torch.Tensor | None:
    """The result, or None if memory ran out; the error, which holds tensors, is then released."""
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
    """What f depends on besides adapter and model; None if that cannot be compared."""
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
            f"of its layers (for example {missed[0]}), so the hypernetwork cannot act on them. "
            f"This happens with fused kernels. Load the model with another loader."
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
        positive: the CONDITIONING of the sampler.
        noise: (B, C, H, W), on the CPU.
        latent: the LATENT that the sampler starts on; None: an empty one.
        sigmas: its SIGMAS; None: it starts at full noise.

    Returns:
        Like `noise`. ComfyUI loads the model, as for sampling.
    """
    if sigmas is not None and len(sigmas) == 0:
        return noise  # no sampler runs in this case
    sampler = _NoiseRecorder()
    run_sampler(sampler, model, positive, noise, seed, latent, sigmas)
    return sampler.noise.to(noise)


class _NoiseRecorder(comfy.samplers.Sampler):
    """A sampler that only records the noise it starts from."""

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
        ValueError: the batch is empty.
    """
    if not len(latent["samples"]):
        raise ValueError("latent is an empty batch. Connect a latent with at least one image.")
    latent = dict(latent)
    ratio = latent.pop("downscale_ratio_spacial", None)
    latent["samples"] = comfy.sample.fix_empty_latent_channels(model, latent["samples"], ratio)
    return latent
