"""How much memory a training run needs, from shapes alone: nothing is downloaded or computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..hypernoise_core.adapter import load_adapter
from ..hypernoise_core.families import Conditioning, Family, family_of_pipeline
from ..hypernoise_core.generator_lora import GeneratorLora
from ..hypernoise_core.hypernetwork import NoiseHypernetwork, modulate
from ..hypernoise_core.rewards import get_reward
from .config import TrainingConfig
from .memory import LiveBytes, checkpoint_activations, save_memory
from .pipelines import model_folder
from .published_models import PUBLISHED, build_on_meta, copy_to_meta, image_size

OPTIMIZER_COPIES = {
    "sgd": 1,  # momentum
    "adam": 2,  # means of gradients and of squared gradients
    "adamw": 2,
    "lbfgs": 16,  # three steps and what they did to the gradient, and ten of the line search
}
"""Numbers that an optimizer holds for each weight while the gradient is computed, at most."""

CHECKPOINTED_SHARE = 0.1
"""Of a reward's activations that are kept when its blocks are recomputed: their inputs."""


@dataclass(frozen=True)
class Estimate:
    """Numbers of parameters, and bytes in the memory of one process."""

    title: str
    """Model, image size and images at a time."""
    network_parameters: int
    adapter_parameters: int
    network: int
    """The frozen network, or this process's shard of it."""
    vae: int
    rewards: int
    """Approximate."""
    adapter: int
    gradients: int
    """Of the adapter."""
    optimizer: int
    average: int
    """The moving average of the adapter's weights."""
    activations: int
    """Kept for the backward pass of one batch: hypernetwork pass, generator and VAE."""
    reward_activations: int
    """The same for the rewards; approximate."""
    peak: int
    """The most activations and their gradients at a time, without those of the rewards."""
    encoded_prompts: int
    """On disk, of 1000 prompts that are as long as the family reads."""
    unknown_rewards: tuple[str, ...] = ()
    """Rewards of unknown size, which are not counted."""

    @property
    def backward(self) -> int:
        """What the backward pass takes beyond what is kept for it."""
        return max(0, self.peak - self.activations - self.reward_activations)

    @property
    def total(self) -> int:
        """Without what the device's libraries take, and without memory lost to fragmentation."""
        return sum(size for size, _ in self._parts())

    def _parts(self) -> list[tuple[int, str]]:
        return [
            (self.network, "frozen network"),
            (self.vae, "VAE"),
            (self.rewards, "rewards (approximate)"),
            (self.adapter, "adapter, in float32"),
            (self.gradients, "gradients of the adapter"),
            (self.optimizer, "optimizer state"),
            (self.average, "moving average of the adapter"),
            (self.activations, "activations kept for the backward pass"),
            (self.reward_activations, "activations of the rewards (approximate)"),
            (self.backward, "additional peak during the backward pass"),
        ]

    def lines(self) -> list[str]:
        """A table to read; a GB is 10^9 bytes."""
        unknown = ", ".join(self.unknown_rewards)
        return [
            self.title,
            f"parameters: {self.network_parameters:,} frozen, {self.adapter_parameters:,} trained",
            "memory of each process:",
            *(f"{_gb(size)}  {what}" for size, what in self._parts() if size),
            f"{_gb(self.total)}  in total, without the memory of the device's libraries",
            *([f"not counted: {unknown}, whose size is unknown"] if unknown else []),
            f"{_gb(self.encoded_prompts)}  on disk for 1000 encoded prompts, at most",
        ]


def _gb(size: int) -> str:
    return f"{size / 1e9:8.1f} GB"


def estimate(
    config: TrainingConfig, pipeline: Any | None = None, *, num_processes: int = 1
) -> Estimate:
    """What a run with these settings takes, measured with tensors that have shapes and no values.

    Text encoders and the rewards' text towers are not counted: they are gone when training starts.

    Args:
        pipeline: of the run; None: built from the published shapes, or from the model's folder.
        num_processes: processes that share each batch.

    Raises:
        FileNotFoundError: the model is not a published one and not on this machine.
        ValueError: a setting does not fit the model.
    """
    dtype = getattr(torch, config.precision)
    pipeline = _shapes(config, pipeline, dtype)
    family = family_of_pipeline(pipeline)
    network = family.network(pipeline)
    adapter = _adapter(config, network, family)
    side, _ = image_size(config.model, config.image_size, pipeline)
    images = -(-config.batch_size // num_processes)
    conditioning = family.empty_conditioning(network, images, dtype, "meta")
    if config.memsave:
        save_memory(pipeline)
    if config.use_checkpoint:
        checkpoint_activations(pipeline)
    noise = torch.empty(images, *family.latent_shape(pipeline, side, side), device="meta")
    kept, peak = measure_step(config, pipeline, adapter, noise, conditioning)
    weights = _bytes(adapter.parameters())
    sizes = {name: get_reward(name).size for name in config.rewards}
    rewards = [size for size in sizes.values() if size is not None]
    share = CHECKPOINTED_SHARE if config.use_checkpoint else 1
    reward_activations = share * images * max((size.activations for size in rewards), default=0)
    place = f"in each of {num_processes} processes" if num_processes > 1 else "in one process"
    return Estimate(
        title=(
            f"{config.model} at {side} x {side} pixels, {images} of {config.batch_size} images at "
            f"a time {place}"
        ),
        network_parameters=_count(network),
        adapter_parameters=_count(adapter),
        network=_bytes(network.parameters()) // (num_processes if config.shard else 1),
        vae=_bytes(pipeline.vae.parameters()),
        rewards=dtype.itemsize * sum(size.parameters for size in rewards),
        adapter=weights,
        gradients=weights,
        optimizer=weights * OPTIMIZER_COPIES[config.optim],
        average=weights if config.ema_decay else 0,
        activations=kept,
        reward_activations=round(dtype.itemsize * reward_activations),
        peak=peak,
        unknown_rewards=tuple(name for name, size in sizes.items() if size is None),
        encoded_prompts=1000 * sum(t.nbytes // images for t in conditioning.values()),
    )


def _shapes(config: TrainingConfig, pipeline: Any | None, dtype: torch.dtype) -> Any:
    if pipeline is not None:
        return copy_to_meta(pipeline, dtype)
    if config.model in PUBLISHED:
        return build_on_meta(config.model, dtype)
    return build_on_meta(model_folder(config.model, config.cache_dir), dtype)


def _adapter(
    config: TrainingConfig, network: nn.Module, family: Family
) -> NoiseHypernetwork | GeneratorLora:
    if config.init_adapter is not None:
        return load_adapter(config.init_adapter, family=family.name).float().to("meta")
    shape = {"rank": config.lora_rank, "alpha": config.lora_alpha}
    shape |= {"adapt_depthwise": config.adapt_depthwise}
    with torch.device("meta"):
        if config.train_type == "finetune":
            return GeneratorLora.initialise(network, family, **shape)
        last = config.last_layer_name
        return NoiseHypernetwork.initialise(network, family, last_layer=last, **shape)


def measure_step(
    config: TrainingConfig,
    pipeline: Any,
    adapter: NoiseHypernetwork | GeneratorLora,
    noise: Tensor,
    conditioning: Conditioning,
) -> tuple[int, int]:
    """Bytes that one batch keeps for its backward pass, and the most in use until it is over.

    The trainer's own steps, but that the reward is a sum of pixels, and that the sampler's
    arithmetic between the network's passes is left out: samplers read values.
    """
    family = family_of_pipeline(pipeline)
    network = family.network(pipeline)

    def generate(latents: Tensor) -> Tensor:
        for _ in range(config.max_generator_steps):
            latents = family.predict(network, latents, conditioning).float()
        return family.decode(pipeline, latents)

    for parameter in adapter.parameters():
        parameter.grad = torch.empty_like(parameter)  # counted as gradients, not here
    with shapes_as_on_gpus(), LiveBytes() as live:
        if config.train_type == "finetune":
            with adapter.attached(network):
                images = generate(noise)
            kept = live.now
            images.sum().backward()
        else:
            output = adapter(network, noise, conditioning)
            start = modulate(noise, output).detach().requires_grad_(True)
            images = generate(start)
            kept = live.now
            (gradient,) = torch.autograd.grad(images.sum(), start)
            output.backward(gradient)
    return kept, live.peak


@contextmanager
def shapes_as_on_gpus() -> Iterator[None]:
    """A context in which the meta device keeps what GPUs keep.

    Both patches of torch are undone at the end. Attention on the meta device would keep the
    attention weights, which grow with the square of the tokens; the fused kernels of GPUs and CPUs
    do not. And checkpoints in older torch look up a module `torch.<device>` for the device's random
    state, which meta does not have.
    """
    original = F.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Tensor:
        if not query.is_meta:
            return original(query, key, value, *args, **options)
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        mask = args[0] if args else options.get("attn_mask")
        return fused(query, key, value, attn_mask=mask)[0]

    F.scaled_dot_product_attention = attention
    torch.meta = torch.cpu
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original
        del torch.meta


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
