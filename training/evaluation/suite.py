"""The jobs of an evaluation: every method at every number of steps, measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...hypernoise_core.atomic_file import write_atomically
from ...hypernoise_core.divergence import kl_terms
from ...hypernoise_core.file_identity import sha256_of
from ...hypernoise_core.hypernetwork import NoiseHypernetwork, sample_noise
from ...hypernoise_core.strict_json import parse_object
from ...hypernoise_core.text_file import read_text
from ..prompts import spread
from ..tiny_world.checker import is_correct
from .adapters import ABLATION
from .jobs import (
    COPIES,
    FEATURES,
    FOLDER,
    SHOWN,
    VIEWS,
    Job,
    JobResult,
    as_bytes,
    read_result,
    write_result,
)
from .lpips import load_lpips, views, weights_file
from .method_table import BASE, METHODS, OURS
from .methods import Method, MethodResult, base, measure, reno
from .metrics import image_encoder, image_features, small_copies
from .runner import Batches, Runner, noise_seed

SHOWN_PROMPTS = 8

_LARGEST_JOB = 20_000  # passes, about: what a run that is interrupted may lose


class Suite:
    """The jobs of an evaluation, and how each is measured.

    Args:
        runner: with rewards, and paraphrases if prompt optimisation is evaluated.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner, self.config, self.parts = runner, runner.config, runner.parts
        self.adapters, self.paraphrases = runner.adapters, runner.prompts.paraphrases
        self.prompts, self.captions = runner.prompts.prompts, runner.prompts.captions
        self.methods = self.config.chosen_methods(paraphrases=self.paraphrases is not None)
        self.encoder = image_encoder(self.parts.rewards)
        self.lpips = load_lpips(self.parts.accelerator.device)

    @cached_property
    def shown(self) -> list[int]:
        """Numbers of the prompts whose images the report shows."""
        return spread(self.subset, SHOWN_PROMPTS)

    @cached_property
    def subset(self) -> list[int]:
        """Numbers of the prompts that methods that search run on at the fewest steps."""
        return spread(range(len(self.prompts)), self.config.search_prompts)

    @cached_property
    def multi_step_subset(self) -> list[int]:
        """Numbers of the prompts that methods that search run on at more steps."""
        return spread(self.subset, self.config.multi_step_search_prompts)

    def _subset(self, steps: int) -> list[int]:
        fewest = steps == min(self.config.chosen_steps)
        return self.subset if fewest else self.multi_step_subset

    @cached_property
    def jobs(self) -> list[Job]:
        """All jobs, with the methods side by side, so that what slows a machine down for a while
        affects all of them."""
        return [job for seed in range(self.config.seeds) for job in self._jobs_of_seed(seed)]

    def _jobs_of_seed(self, seed: int) -> Iterator[Job]:
        for steps in self.config.chosen_steps:
            for name in self.methods:
                info = METHODS[name]
                if info.slow and steps not in self.config.slow_steps:
                    continue
                for run in range(self.adapters.runs(name)):
                    yield from self._split(name, steps, run, seed)
        for name in self.config.ablations:
            yield from self._split(ABLATION + name, min(self.config.chosen_steps), 0, seed)

    def _split(self, method: str, steps: int, run: int, seed: int) -> Iterator[Job]:
        searches = self.adapters.info(method).searches
        prompts = self._subset(steps) if searches else range(len(self.prompts))
        return self.runner.split(method, steps, run, (seed,), prompts, largest=_LARGEST_JOB)

    def identity(self, job: Job) -> dict[str, Any]:
        """What a job's numbers depend on besides its place."""
        identity = {
            **self.parts.identity,
            "size": list(self.parts.size),
            "precision": self.config.dtype,
            "rewards": self.parts.rewards.weights,
            "batch_size": self.config.batch_size,
            "prompts": self._digest_of(job.prompts),
        }
        if (digest := self.adapters.digest(job.method, job.run)) is not None:
            identity["adapter"] = digest
        if self.runner.uses_paraphrases(job):
            # Named so by earlier versions, whose evaluations can be resumed.
            identity["wordings"] = _digest(json.dumps(self.paraphrases.by_prompt))
        if self.lpips is not None:
            identity["lpips"] = sha256_of(weights_file())
        if self.is_shown(job):
            identity["shown"] = self._digest_of(self.shown)
        return identity

    def _digest_of(self, numbers: Sequence[int]) -> str:
        return digest([self.prompts[number] for number in numbers])

    def run(self) -> None:
        """Does this process's share of the jobs that are not done yet, under a progress bar.

        Raises:
            ValueError: a job's file in the folder is damaged or belongs to another evaluation.
        """
        own = self.runner.share([job for job in self.jobs if self.result(job) is None])
        if own:
            self._warm_up(own)
        title = f"evaluating {len(own)} of {len(self.jobs)} jobs"
        self.runner.run(own, self._measure, title)

    def result(self, job: Job) -> JobResult | None:
        """The result of a job; None if it is not done.

        Raises:
            ValueError: its file is damaged or belongs to another evaluation.
        """
        return read_result(job.file(self.config.out), self.identity(job))

    def _warm_up(self, jobs: Sequence[Job]) -> None:
        """Runs what a device does slowly the first time."""
        _, task = next(self.runner.batches(jobs[0]))
        task.score(base(task).images)
        if any("reno" in job.method for job in jobs):
            reno(1)(task)

    def _measure(self, job: Job, method: Method, batches: Batches) -> None:
        results: list[MethodResult] = []
        correct: list[float] = []
        tensors: dict[str, list[Tensor]] = {COPIES: [], VIEWS: [], FEATURES: [], SHOWN: []}
        for numbers, task in batches:
            result = measure(task, method)
            images = result.images
            results.append(replace(result, images=images[:0]))  # they would fill the memory
            correct += self._correct(numbers, images)
            tensors[COPIES].append(as_bytes(small_copies(images)))
            if self.lpips is not None:
                tensors[VIEWS].append(as_bytes(views(images)))
            if self.encoder is not None:
                tensors[FEATURES].append(image_features(self.encoder, images).half())
            if self.is_shown(job):
                rows = [row for row, number in enumerate(numbers) if number in self.shown]
                tensors[SHOWN].append(as_bytes(images[rows]))
        joined = {name: torch.cat(parts) for name, parts in tensors.items() if parts}
        write_result(job.file(self.config.out), self._joined(job, results, correct), joined)

    def is_shown(self, job: Job) -> bool:
        """Whether the report shows its images: those of the first seed and run, at the fewest steps
        of all methods, at more steps of base and HyperNoise."""
        fewest = job.steps == min(self.config.chosen_steps)
        return (job.seed, job.run) == (0, 0) and (fewest or job.method in (BASE, OURS))

    def _correct(self, numbers: Sequence[int], images: Tensor) -> list[float]:
        """Whether the checker agrees with each image; empty without captions."""
        if self.captions is None:
            return []
        captions = [self.captions[number] for number in numbers]
        return [float(is_correct(image, c)) for image, c in zip(images, captions, strict=True)]

    def _joined(self, job: Job, batches: Sequence[MethodResult], correct: list[float]) -> JobResult:
        """One result of those of the batches."""
        asks = self.runner.uses_paraphrases(job)
        asking = self.paraphrases.seconds_per_prompt if asks else 0.0
        sizes = [len(batch.reward) for batch in batches]
        has_f = batches[0].f_squared is not None
        return JobResult(
            identity=self.identity(job),
            seconds_per_image=[batch.seconds_per_image + asking for batch in batches],
            forward_passes=float(np.average([b.forward_passes for b in batches], weights=sizes)),
            backward_passes=float(np.average([b.backward_passes for b in batches], weights=sizes)),
            total=torch.cat([batch.reward for batch in batches]).tolist(),
            scores={
                name: torch.cat([batch.scores[name] for batch in batches]).tolist()
                for name in self.parts.rewards.weights
            },
            correct=correct or None,
            f_squared=torch.cat([b.f_squared for b in batches]).tolist() if has_f else None,
        )

    # The divergence

    def kl(self, method: str, run: int) -> dict[str, float] | None:
        """Estimated terms of KL(modulated noise || N(0, I)) of a hypernetwork in nats, averaged
        over some noises; None if not requested, or if f replaces the noise.

        Args:
            method: `hypernoise`, or a method of the ablation.
            run: which of its adapters.
        """
        f = self.adapters.get(method, run).hypernetwork
        if not self.config.kl_noises or not f.has_kl:
            return None
        numbers = spread(range(len(self.prompts)), self.config.kl_noises)
        model = self.parts.identity["model_content"]
        settings = [model, self.parts.size, self.config.dtype]
        identity = [*settings, self.adapters.digest(method, run), self._digest_of(numbers)]
        file = self.config.out / FOLDER / "kl" / f"{_digest(json.dumps(identity))}.json"
        if not file.is_file():
            write_atomically(file, json.dumps(self._kl(f, numbers)).encode())
        return parse_object(read_text(file))

    def _kl(self, f: NoiseHypernetwork, numbers: Sequence[int]) -> dict[str, float]:
        device, pipeline = self.parts.accelerator.device, self.parts.pipeline
        rows = self.parts.features.rows([self.prompts[number] for number in numbers])
        conditioning = {name: tensor.to(device) for name, tensor in rows.items()}
        shape = f.family.latent_shape(pipeline, *self.parts.size)
        noise = sample_noise(shape, [noise_seed(n, 0) for n in numbers], device=device)
        network = f.family.network(pipeline)
        generator = torch.Generator().manual_seed(0)
        terms = kl_terms(lambda x: f(network, x, conditioning), noise, generator=generator)
        return {"kl": float(terms.kl.mean()), "l2": float(terms.l2.mean())}


def digest(texts: Sequence[str]) -> str:
    """16 hexadecimal digits that identify texts and their order."""
    return _digest("\0".join(texts))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
