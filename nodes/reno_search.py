"""ReNO inside ComfyUI: gradients through models that ComfyUI loaded only for inference."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management as management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher

from ..hypernoise_core.reno import RenoConfig, RenoResult, optimise_noise
from .conditioning import map_tensors
from .rewards import Rewards
from .sampling_run import SamplingRun, run_sampler

KEY = "hypernoise_reno"
_NO_GRADIENT = ("modified by an inplace operation", "no autograd formula")  # of torch's errors


def search(
    model: ModelPatcher,
    positive: list,
    vae: Any,
    rewards: Rewards,
    prompt: str,
    noise: torch.Tensor,
    seed: int,
    config: RenoConfig,
    on_step: Callable[[int, torch.Tensor, torch.Tensor], None],
) -> RenoResult:
    """The noise near the given one (B, C, H, W) whose one-step image gets the highest reward.

    ComfyUI loads model, VAE and rewards together, as for sampling, and can interrupt the search.

    Raises:
        TypeError: the model does not support gradients.
        OOM_EXCEPTION: the gradient did not fit into memory.
    """
    loaded = model.clone()
    loaded.remove_additional_models("multigpu")  # copies on other GPUs, which no gradient reaches
    loaded.set_additional_models(KEY, [vae.patcher, *rewards.patchers.values()])
    sampler = _Search(vae, rewards, prompt, config, on_step)
    try:
        run_sampler(sampler, loaded, positive, noise, seed)
    except Exception as error:
        if any(sign in str(error) for sign in _NO_GRADIENT):
            raise TypeError(
                f"ComfyUI's {type(model.model.diffusion_model).__name__} does not support "
                f"gradients, so ReNO cannot search with it. In ComfyUI, ReNO works with "
                f"SANA-Sprint and SD-Turbo. For FLUX, use `hypernoise reno` on the command line."
            ) from error
        if not management.is_oom(error):
            raise
        shape = " x ".join(map(str, noise.shape))
        raise management.OOM_EXCEPTION(
            f"Not enough memory for ReNO's gradient through model, VAE and reward on latents of "
            f"{shape}. Use a smaller batch size, smaller images or a smaller reward."
        ) from error
    return sampler.result


class _Search(comfy.samplers.Sampler):
    """A sampler that runs the search, starting from its noise."""

    result: RenoResult

    def __init__(
        self, vae: Any, rewards: Rewards, prompt: str, config: RenoConfig, on_step: Callable
    ) -> None:
        self.vae, self.rewards, self.prompt = vae, rewards, prompt
        self.config, self.on_step = config, on_step

    def sample(
        self, guider, sigmas, extra_args, callback, noise, latent_image=None, *args, **kwargs
    ) -> torch.Tensor:
        rewards = self.rewards.ensemble()
        prompts = [self.prompt] * len(noise)

        def on_step(step: int, images: torch.Tensor, scores: torch.Tensor) -> None:
            management.throw_exception_if_processing_interrupted()
            self.on_step(step, images, scores)

        # ComfyUI runs nodes in inference mode, in which no gradient exists.
        with torch.inference_mode(False), torch.enable_grad(), _kernels_with_gradient():
            run = SamplingRun(guider, _ordinary(sigmas), noise, latent_image)
            prompt = _ordinary(run.prompt())
            with differentiable(run.model, self.vae.first_stage_model, rewards):
                self.result = optimise_noise(
                    noise.clone(),
                    lambda x: _generate(run, prompt, self.vae, x),
                    lambda images: rewards.score(images, prompts),
                    self.config,
                    on_step,
                )
        return self.result.noise.to(noise)


def _generate(run: SamplingRun, prompt: list[dict], vae: Any, x: torch.Tensor) -> torch.Tensor:
    """One step of the model from noise x (B, C, H, W): images (B, 3, height, width) in [0, 1]."""
    x0 = run.denoised(run.scaled(x), prompt)
    latents = run.model.process_latent_out(x0.float())
    images = vae.first_stage_model.decode(latents.to(vae.vae_dtype)).float()
    return (images / 2 + 0.5).clamp(0, 1)


@contextmanager
def differentiable(*modules: torch.nn.Module) -> Iterator[None]:
    """Let gradients pass through modules whose weights were created in inference mode.

    Autograd rejects such tensors, so ordinary tensors on the same memory replace them meanwhile.
    """
    replaced = []
    try:
        for part in (part for module in modules for part in module.modules()):
            for store in (part._parameters, part._buffers):
                for name, tensor in store.items():
                    if tensor is not None and tensor.is_inference():
                        replaced.append((store, name, tensor))
        # Into the stores themselves: a module's own setattr may do more than replace.
        for store, name, tensor in replaced:
            twin = _on_same_memory(tensor)
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            store[name] = torch.nn.Parameter(twin, requires_grad=False) if is_parameter else twin
        yield
    finally:
        for store, name, tensor in replaced:
            store[name] = tensor


@contextmanager
def _kernels_with_gradient() -> Iterator[None]:
    """Set ComfyUI's flag that makes its networks avoid kernels without a gradient."""
    before = management.in_training
    management.in_training = True
    try:
        yield
    finally:
        management.in_training = before


def _on_same_memory(tensor: torch.Tensor) -> torch.Tensor:
    """An ordinary tensor, which a view or `detach` of an inference tensor would not be."""
    twin = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return twin.set_(
        tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
    )


def _ordinary(value: Any) -> Any:
    """Sigmas, or a prompt, with ordinary copies of the tensors created in inference mode."""
    return map_tensors(lambda tensor: tensor.clone() if tensor.is_inference() else tensor, value)
