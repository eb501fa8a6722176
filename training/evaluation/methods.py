"""Ways to spend compute at test time, side by side on the same captions and noises."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...hypernoise_core.generate import generate
from ...hypernoise_core.hypernetwork import NoiseHypernetwork
from ...hypernoise_core.rewards import Ensemble, score_in_batches

_CANDIDATE_STRIDE = 1_000_003  # between the seeds of one image's candidates


@dataclass(frozen=True)
class MethodResult:
    """What a method made: images (N, 3, H, W) in [0, 1], rewards (N,), wall-clock seconds each."""

    images: Tensor
    reward: Tensor
    seconds_per_image: float


@dataclass(frozen=True)
class Task:
    """What is generated: one image for each prompt, from the noise of its seed.

    `conditioning` holds the encoded prompts, first dimension N; encoding is in no method's time.
    """

    pipeline: Any
    rewards: Ensemble
    prompts: Sequence[str]
    conditioning: dict[str, Tensor]
    seeds: Sequence[int]
    size: tuple[int, int]
    batch_size: int = 32

    def images(self, seeds: Sequence[int], hypernetwork: NoiseHypernetwork | None) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] by one generator step."""
        return generate(
            self.pipeline,
            self.prompts,
            hypernetwork,
            seeds=seeds,
            height=self.size[0],
            width=self.size[1],
            conditioning=self.conditioning,
            batch_size=self.batch_size,
        ).images

    def score(self, images: Tensor) -> Tensor:
        """Rewards (N,)."""
        scores = score_in_batches(self.rewards, images, self.prompts, batch_size=self.batch_size)
        return self.rewards.total(scores)


def base(task: Task) -> MethodResult:
    """The generator as it is."""
    return _timed(task, lambda: task.images(task.seeds, None))


def hypernoise(task: Task, hypernetwork: NoiseHypernetwork) -> MethodResult:
    """The generator on noise that the hypernetwork modulated."""
    return _timed(task, lambda: task.images(task.seeds, hypernetwork))


def best_of(task: Task, candidates: int) -> MethodResult:
    """Of `candidates` images the one that the reward likes best; the first is the base's."""

    def choose() -> Tensor:
        best, best_reward = torch.empty(0), torch.empty(0)
        for candidate in range(candidates):
            seeds = [seed + candidate * _CANDIDATE_STRIDE for seed in task.seeds]
            images = task.images(seeds, None)
            reward = task.score(images)
            if candidate == 0:
                best, best_reward = images, reward
                continue
            better = reward > best_reward
            best = torch.where(better[:, None, None, None], images, best)
            best_reward = torch.where(better, reward, best_reward)
        return best

    return _timed(task, choose)


def _timed(task: Task, make: Callable[[], Tensor]) -> MethodResult:
    start = time.perf_counter()
    images = make()
    seconds = time.perf_counter() - start
    return MethodResult(images, task.score(images), seconds / len(images))
