"""A plain implementation of the method's training step, as a baseline for benchmarks.

It follows arXiv 2508.09968 and what is known of its code: peft adapters, turned off for the pass of
the generator; all prompts encoded in each step, padded to the length that the stock pipeline reads;
one graph from the loss to the adapter; no caching, recomputation or skipped work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from passes import with_peft
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.profiler import record_function

from hypernoise.hypernoise_core.families import Conditioning, family_of_pipeline
from hypernoise.hypernoise_core.hypernetwork import noise_penalty
from hypernoise.hypernoise_core.lora import adaptable_layers
from hypernoise.hypernoise_core.rewards import Ensemble
from hypernoise.hypernoise_core.rewards.clip import ClipEncoder
from hypernoise.training.config import TrainingConfig
from hypernoise.training.optimization import make_optimizer


class PlainTrainer:
    """Trains an adapter with a frozen pipeline and rewards; `step` is one update.

    Args:
        pipeline: peft's layers are added to its network.
        encode: maps prompts to conditioning; run in each step without gradient.
        config: rank, alpha, optimizer, clipping and the regulariser's weight are used.
        size: height and width of the images in pixels.
    """

    def __init__(
        self,
        pipeline: Any,
        encode: Callable[[Sequence[str]], Conditioning],
        rewards: Ensemble,
        config: TrainingConfig,
        size: tuple[int, int],
    ) -> None:
        self.pipeline, self.rewards, self.config = pipeline, rewards, config
        self.encode = torch.no_grad()(encode)
        self.family = family_of_pipeline(pipeline)
        self.shape = self.family.latent_shape(pipeline, *size)
        network = self.family.network(pipeline)
        self.device = next(network.parameters()).device
        names = list(adaptable_layers(network, False))
        self.network = with_peft(network, names, config.lora_rank, config.lora_alpha)
        self.layers = [m for m in self.network.modules() if isinstance(m, BaseTunerLayer)]
        self.parameters = [p for n, p in self.network.named_parameters() if ".lora_" in n]
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.optimizer = make_optimizer(self.parameters, config)

    def step(self, prompts: Sequence[str]) -> float:
        """One update on fresh noise; returns the loss."""
        with record_function("text encoder"):
            conditioning = self.encode(prompts)
        noise = torch.randn(len(prompts), *self.shape, device=self.device)
        with record_function("hypernetwork"):
            delta = self.hypernetwork(noise, conditioning)
        with record_function("generator"):
            latents = self.generator(
                lambda: self.family.denoise(self.pipeline, noise + delta, conditioning)
            )
        with record_function("decode"):
            images = self.family.decode(self.pipeline, latents)
        with record_function("rewards"):
            for encoder in self.rewards.modules():
                if isinstance(encoder, ClipEncoder):
                    encoder._text_features.clear()
            scores = self.rewards.scores(images, prompts)
        penalty = self.config.reg_weight * noise_penalty(delta).mean()
        loss = self.rewards.image_losses(scores).mean() + penalty
        with record_function("backward"):
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.grad_clip)
        with record_function("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss.item()

    def hypernetwork(self, noise: Tensor, conditioning: Conditioning) -> Tensor:
        """The output of f, (B, C, H, W)."""

        def branch_alone(layer: nn.Module, args: tuple, output: Tensor) -> Tensor:
            a, b = layer.lora_A["default"], layer.lora_B["default"]
            return b(a(args[0].to(a.weight.dtype))) * layer.scaling["default"]

        last = self.network.get_submodule(self.family.last_layer)
        handle = last.register_forward_hook(branch_alone)
        try:
            return self.family.predict(self.network, noise, conditioning)
        finally:
            handle.remove()

    def generator(self, run: Callable[[], Tensor]) -> Tensor:
        """The result of `run` with the adapters turned off."""
        for layer in self.layers:
            layer.enable_adapters(False)
        result = run()
        for layer in self.layers:
            layer.enable_adapters(True)
        for parameter in self.parameters:  # peft freezes the adapters that it turns off
            parameter.requires_grad_(True)
        return result
