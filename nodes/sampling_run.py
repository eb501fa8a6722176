"""What ComfyUI passes to a sampler: where sampling starts, from what, and with which prompts."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher


@dataclass(frozen=True)
class SamplingRun:
    """What ComfyUI passes to a sampler; B, C, H, W are those of the latents."""

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
        """The model and the objects that nodes patched into it, ordered by name."""
        replaced = self.guider.model_patcher.object_patches
        return [self.model, *(replaced[name] for name in sorted(replaced))]

    @property
    def first_sigma(self) -> float:
        """The first sigma."""
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        """The sigma of pure noise."""
        return float(self.model.model_sampling.sigma_max)

    @property
    def starts_at_full_noise(self) -> bool:
        """Whether ComfyUI's samplers treat the first sigma as the highest one."""
        return self.first_sigma >= self.sigma_max or math.isclose(
            self.first_sigma, self.sigma_max, rel_tol=1e-5
        )

    @property
    def starts_from_noise_alone(self) -> bool:
        """Whether no image is mixed into the noise; ComfyUI leaves an empty latent at zeros."""
        return self.starts_at_full_noise or is_empty(self.latent_image)

    @property
    def uses_noise(self) -> bool:
        """Whether the noise contributes to what the sampler starts from."""
        return bool(torch.count_nonzero(self.scaled(self.noise)))

    def prompt(self, noise_prompt: list | None = None) -> list[dict]:
        """The sampler's positive conditioning, or `noise_prompt`, without ControlNet and GLIGEN."""
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
        return [_without(cond, "control", "gligen") for cond in conds]

    def active(self, prompt: list[dict]) -> list[dict]:
        """The parts of a prompt that are active where sampling starts, without their time range."""
        sigma = self.sigmas[0].clamp(max=self.sigma_max)
        return [
            _without(cond, "timestep_start", "timestep_end")
            for cond in prompt
            if not sigma > cond.get("timestep_start", math.inf)
            and not sigma < cond.get("timestep_end", -math.inf)
        ]

    def scaled(self, noise: torch.Tensor) -> torch.Tensor:
        """What a sampler makes of noise (B, C, H, W) on an empty latent, before its first step."""
        return self.model.model_sampling.noise_scaling(
            self.sigmas[0], noise, torch.zeros_like(noise), self.starts_at_full_noise
        )

    def denoised(self, x: torch.Tensor, prompt: list[dict]) -> torch.Tensor:
        """The model's x0 of x (B, C, H, W), by one pass at the sigma where sampling starts.

        Areas, masks and several prompts are weighted by ComfyUI, as for a sampler. What the
        sampling run attached to the model is left out.
        """
        sigma = self.sigmas[:1].clamp(max=self.sigma_max).repeat(len(x))
        # Fresh options: patches, caches and compiled modules of the sampling run must neither act
        # in this pass nor remember it.
        options = {"transformer_options": {"sample_sigmas": self.sigmas}}
        return comfy.samplers.calc_cond_batch(self.model, [prompt], x, sigma, options)[0]

    def raw_output(self, prompt: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
        """The raw output of the model's network for the noise at the timestep of pure noise.

        Returns:
            The network's output (B, C, H, W), and where a prompt covers the image (B, 1, H, W); the
            output is 0 elsewhere.
        """
        with self._network_sees_noise():
            x0 = self.denoised(self.noise, prompt)
        # Where no prompt is (areas, masks) ComfyUI returns exact zeros.
        covered = x0.ne(0).any(dim=1, keepdim=True)
        return torch.where(covered, self.noise - x0, torch.zeros_like(x0)), covered

    @contextmanager
    def _network_sees_noise(self) -> Iterator[None]:
        """Swaps the model's sampling, so that `denoised` is noise - output for every kind of model.

        The timestep is that of pure noise in the model as it was loaded. Nodes that replace its
        sampling change what the sampler does, not what its network was trained at.
        """
        replaced = self.model.model_sampling
        loaded = self.guider.model_patcher.object_patches_backup.get("model_sampling", replaced)
        highest = torch.full_like(self.noise[:1, 0, 0, 0], float(loaded.sigma_max))
        self.model.model_sampling = _PureNoise(float(loaded.timestep(highest)), replaced)
        try:
            yield
        finally:
            self.model.model_sampling = replaced


class _PureNoise(torch.nn.Module):
    """The part of ComfyUI's model_sampling objects that BaseModel calls in a pass."""

    def __init__(self, timestep: float, replaced: torch.nn.Module) -> None:
        super().__init__()
        self._timestep = timestep
        self._replaced = (replaced,)  # in a tuple, so that torch does not make it a submodule

    def __getattr__(self, name: str) -> Any:
        """From the replaced object, for other threads that plan their sigmas meanwhile."""
        return getattr(self._replaced[0], name)

    def calculate_input(self, sigma: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The network's input: the unscaled noise (B, C, H, W), as in training."""
        return noise

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        """(B,), always that of pure noise."""
        return torch.full_like(sigma, self._timestep)

    def calculate_denoised(
        self, sigma: torch.Tensor, model_output: torch.Tensor, model_input: torch.Tensor
    ) -> torch.Tensor:
        """(B, C, H, W), never 0 in all channels, so that zeros mark areas without a prompt."""
        return model_input - model_output


def run_sampler(
    sampler: comfy.samplers.Sampler,
    model: ModelPatcher,
    positive: list,
    noise: torch.Tensor,
    seed: int,
    latent: dict | None = None,
    sigmas: torch.Tensor | None = None,
) -> None:
    """Let ComfyUI load a model and call one of our samplers, as it does for KSampler.

    Args:
        positive: the CONDITIONING.
        noise: (B, C, H, W), on the CPU.
        latent: the LATENT to start on; None: an empty one.
        sigmas: the SIGMAS; None: one step from full noise.
    """
    latent = latent or {"samples": torch.zeros_like(noise)}
    if sigmas is None:
        sigmas = torch.tensor([float(model.get_model_object("model_sampling").sigma_max), 0.0])
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive})
    guider.sample(
        noise,
        latent["samples"],
        sampler,
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        disable_pbar=True,
        seed=seed,
    )


def is_empty(samples: Any) -> bool:
    """Whether a LATENT's samples contain no image, as ComfyUI defines it: all zeros, or None."""
    if samples is None:
        return True
    parts = samples.unbind() if samples.is_nested else [samples]
    return all(torch.count_nonzero(part) == 0 for part in parts)


def _without(cond: dict, *names: str) -> dict:
    return {name: value for name, value in cond.items() if name not in names}
