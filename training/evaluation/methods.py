"""Ways to spend compute at test time, side by side on the same prompts and noises."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...hypernoise_core.families import Conditioning, Family, family_of_pipeline
from ...hypernoise_core.generate import Generated, generate
from ...hypernoise_core.generator_lora import GeneratorLora
from ...hypernoise_core.hypernetwork import NoiseHypernetwork, noise_penalty
from ...hypernoise_core.reno import RenoConfig
from ...hypernoise_core.rewards import Ensemble, score_in_batches
from ..reno_search import search_noise

_CANDIDATE_STRIDE = 1_000_003  # between the seeds of one image's candidates


@dataclass(frozen=True)
class Task:
    """What to generate: one image of each prompt, from the noise of its seed.

    `conditioning` holds the encoded prompts, first dimension N; no method's time
    includes the encoding.
    `rewards` may be None for methods that do not look at rewards.
    """

    pipeline: Any
    rewards: Ensemble | None
    prompts: Sequence[str]
    conditioning: Conditioning
    seeds: Sequence[int]
    size: tuple[int, int]
    batch_size: int = 32
    steps: int = 1

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def family(self) -> Family:
        return family_of_pipeline(self.pipeline)

    @property
    def network(self) -> nn.Module:
        return self.family.network(self.pipeline)

    def generate(self, hypernetwork: NoiseHypernetwork | None = None) -> Generated:
        """One image for each prompt, by `steps` generator steps."""
        return generate(
            self.pipeline,
            self.prompts,
            hypernetwork,
            seeds=self.seeds,
            steps=self.steps,
            height=self.size[0],
            width=self.size[1],
            conditioning=self.conditioning,
            batch_size=self.batch_size,
        )

    def scores(self, images: Tensor) -> dict[str, Tensor]:
        """Each reward's scores (N,) of images (N, 3, H, W) by name."""
        return score_in_batches(self.rewards, images, self.prompts, batch_size=self.batch_size)

    def score(self, images: Tensor) -> Tensor:
        """The weighted sum of the rewards, (N,)."""
        return self.rewards.total(self.scores(images))

    def rows(self, rows: slice) -> Task:
        """The same task for some of the prompts."""
        return replace(
            self,
            prompts=self.prompts[rows],
            seeds=self.seeds[rows],
            conditioning={name: tensor[rows] for name, tensor in self.conditioning.items()},
        )

    def batches(self) -> Iterator[Task]:
        """Tasks of at most `batch_size` prompts."""
        for start in range(0, len(self), self.batch_size):
            yield self.rows(slice(start, start + self.batch_size))


@dataclass(frozen=True)
class Samples:
    """Images (N, 3, H, W) in [0, 1] on the CPU; mean f^2 of each noise (N,) if there is an f."""

    images: Tensor
    f_squared: Tensor | None = None


Method = Callable[[Task], Samples]


# The methods


def base(task: Task) -> Samples:
    """The generator as it is."""
    return Samples(task.generate().images)


def hypernoise(hypernetwork: NoiseHypernetwork) -> Method:
    """The generator on noise that the hypernetwork modulated."""

    def make(task: Task) -> Samples:
        made = task.generate(hypernetwork)
        return Samples(made.images, noise_penalty(made.output))

    return make


def finetune(lora: GeneratorLora) -> Method:
    """The generator with a LoRA that was trained on the rewards directly."""

    def make(task: Task) -> Samples:
        with lora.attached(task.network):
            return Samples(task.generate().images)

    return make


def best_of(candidates: int) -> Method:
    """The image with the highest reward among `candidates`, the first of which is base's."""

    def make(task: Task) -> Samples:
        best, best_reward = torch.empty(0), torch.empty(0)
        for candidate in range(candidates):
            seeds = [seed + candidate * _CANDIDATE_STRIDE for seed in task.seeds]
            images = replace(task, seeds=seeds).generate().images
            reward = task.score(images)
            if candidate == 0:
                best, best_reward = images, reward
                continue
            better = reward > best_reward
            best = torch.where(better[:, None, None, None], images, best)
            best_reward = torch.where(better, reward, best_reward)
        return Samples(best)

    return make


def reno(iterations: int, hypernetwork: NoiseHypernetwork | None = None) -> Method:
    """ReNO with the paper's settings, from plain noise or from the hypernetwork's."""
    config = RenoConfig(iterations=iterations)

    def make(task: Task) -> Samples:
        return Samples(torch.cat([search(b, config, hypernetwork) for b in task.batches()]))

    return make


def search(
    task: Task,
    config: RenoConfig,
    hypernetwork: NoiseHypernetwork | None = None,
    on_step: Callable[[int, Tensor, Tensor], None] = lambda step, images, scores: None,
) -> Tensor:
    """The best images (N, 3, H, W) that ReNO finds for a task, as one batch.

    Args:
        hypernetwork, on_step: as of `search_noise`.
    """
    result = search_noise(
        task.pipeline,
        task.rewards,
        task.prompts,
        task.conditioning,
        seeds=task.seeds,
        size=task.size,
        config=config,
        steps=task.steps,
        hypernetwork=hypernetwork,
        on_step=on_step,
    )
    return result.images.float().cpu()


def prompt_optimisation(
    candidates: Mapping[str, Sequence[str]], encode: Callable[[Sequence[str]], Conditioning]
) -> Method:
    """The image with the highest reward, given the prompt, among those of several paraphrases.

    All paraphrases start from the same noise.

    Args:
        candidates: paraphrases of each prompt, including the prompt itself.
        encode: from paraphrases to their conditioning, one row each.
    """

    def make(task: Task) -> Samples:
        paraphrases = [candidates[prompt] for prompt in task.prompts]
        counts = [len(texts) for texts in paraphrases]
        copies = replace(
            task,
            prompts=_repeated(task.prompts, counts),
            seeds=_repeated(task.seeds, counts),
            conditioning=encode([text for texts in paraphrases for text in texts]),
        )
        images = copies.generate().images
        rewards = copies.score(images)
        groups = zip(images.split(counts), rewards.split(counts), strict=True)
        return Samples(torch.stack([images[rewards.argmax()] for images, rewards in groups]))

    return make


def _repeated(items: Sequence[Any], counts: Sequence[int]) -> list[Any]:
    return [item for item, count in zip(items, counts, strict=True) for _ in range(count)]


# Measuring them


@dataclass
class Passes:
    """Images that passed through the generator's network, forward and backward."""

    forward: int = 0
    backward: int = 0

    def add_backward(self, gradient: Tensor) -> None:
        self.backward += len(gradient)


@contextmanager
def count_passes(network: nn.Module) -> Iterator[Passes]:
    """Counts each image that passes through the network, as generator or as hypernetwork."""
    passes = Passes()

    def after(module: nn.Module, arguments: tuple, output: tuple[Tensor, ...]) -> None:
        passes.forward += len(output[0])
        if output[0].requires_grad:
            output[0].register_hook(passes.add_backward)

    handle = network.register_forward_hook(after)
    try:
        yield passes
    finally:
        handle.remove()


@dataclass(frozen=True)
class MethodResult:
    """The images of a method for N prompts, and their cost."""

    images: Tensor
    """(N, 3, H, W) in [0, 1]."""
    scores: dict[str, Tensor]
    """By reward, (N,)."""
    reward: Tensor
    """Their weighted sum, (N,)."""
    f_squared: Tensor | None
    """Mean f^2 of an element of the noise, (N,); None without an f."""
    seconds_per_image: float
    """Wall-clock time, excluding the encoding of prompts and the scores above."""
    forward_passes: float
    """Of the network, per image."""
    backward_passes: float
    """Of the network, per image; one costs about two forward passes."""


def measure(task: Task, method: Method) -> MethodResult:
    """Runs a method and measures its time, its passes and the scores of its images.

    Warm up first, so that the first method does not pay for one-time costs.
    """
    with count_passes(task.network) as passes:
        start = time.perf_counter()
        made = method(task)
        seconds = time.perf_counter() - start
    scores = task.scores(made.images)
    count = len(task)
    return MethodResult(
        images=made.images,
        scores=scores,
        reward=task.rewards.total(scores),
        f_squared=made.f_squared,
        seconds_per_image=seconds / count,
        forward_passes=passes.forward / count,
        backward_passes=passes.backward / count,
    )
