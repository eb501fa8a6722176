"""Which prompt and which noise every image of every update has."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from ..hypernoise_core.hypernetwork import draw_noise, seed_generators
from .config import TrainingConfig


@dataclass(frozen=True)
class Batch:
    """Images that run at a time: one prompt and one seed of noise each."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    generator_steps: int
    counts: bool = True
    """False: a placeholder, because all processes must run a sharded generator together."""

    def share(self, process: int, processes: int, *, company: bool = False) -> Batch:
        """The images of one process; every image is in the share of exactly one.

        Args:
            company: a process without images gets a placeholder that does not count.
        """
        rows = slice(process, None, processes)
        counts = process < len(self.prompts)
        if company and not counts:
            rows = slice(1)
        return replace(self, prompts=self.prompts[rows], seeds=self.seeds[rows], counts=counts)

    def draw(self, shape: Sequence[int]) -> tuple[Tensor, list[torch.Generator]]:
        """The noise of the images, (B, *shape) on the CPU, and the generators that it came from,
        for what the sampler draws between its steps."""
        generators = seed_generators(self.seeds)
        return draw_noise(shape, generators), generators


class BatchPlan:
    """All updates of a run, in order.

    An update depends only on its number and the seed. So processes agree without communication, a
    resumed run continues as if it had not stopped, and the number of processes changes nothing.
    Each epoch takes every prompt once, in a new order; its last update may be smaller.

    Args:
        prompts: what is trained on.

    Raises:
        ValueError: there are no prompts.
    """

    def __init__(self, prompts: Sequence[str], config: TrainingConfig) -> None:
        if not prompts:
            raise ValueError("training needs at least one prompt")
        self.prompts, self.config = list(prompts), config
        in_batch = 1 if config.one_prompt_per_batch else config.batch_size
        self._in_update = in_batch * config.accumulation_steps
        self.updates_per_epoch = -(-len(self.prompts) // self._in_update)
        self.steps = config.steps or config.epochs * self.updates_per_epoch
        self._order = lru_cache(maxsize=1)(self._shuffled)

    def update(self, step: int) -> Iterator[Batch]:
        """The batches of update number `step`, which counts from 0."""
        epoch, place = divmod(step, self.updates_per_epoch)
        first = place * self._in_update
        chosen = self._order(epoch)[first : first + self._in_update]
        if self.config.one_prompt_per_batch:
            parts = [[i] * self.config.batch_size for i in chosen]
        else:
            size = self.config.batch_size
            parts = [chosen[i : i + size] for i in range(0, len(chosen), size)]
        for number, part in enumerate(parts):
            yield Batch(
                tuple(self.prompts[i] for i in part),
                tuple(self._seed(step, number, slot) for slot in range(len(part))),
                self._generator_steps(step, number),
            )

    def _shuffled(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(_number(self.config.seed, "epoch", epoch))
        return torch.randperm(len(self.prompts), generator=generator).tolist()

    def _seed(self, step: int, batch: int, slot: int) -> int:
        """Of the noise of one image."""
        seed = self.config.seed
        if self.config.latent_type == "inf":
            return _number(seed, step, batch, slot)
        if self.config.latent_type == "batch":
            return _number(seed, step)
        return _number(seed, slot if self.config.latent_type == "multi" else 0)

    def _generator_steps(self, step: int, batch: int) -> int:
        return 1 + _number(self.config.seed, "steps", step, batch) % self.config.max_generator_steps


def _number(*of: int | str) -> int:
    """A number of 63 bits that is always the same for the same arguments, and else a random one."""
    return int.from_bytes(hashlib.sha256(repr(of).encode()).digest()[:8], "big") >> 1
