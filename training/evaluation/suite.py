"""The cells of an evaluation, each of them done once, by one of the processes."""

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
from tqdm import tqdm

from ...hypernoise_core.atomic_file import write_atomically
from ...hypernoise_core.divergence import kl_terms
from ...hypernoise_core.file_identity import sha256_of
from ...hypernoise_core.hypernetwork import NoiseHypernetwork, sample_noise
from ...hypernoise_core.strict_json import parse_object
from ...hypernoise_core.text_file import read_text
from ..parts import Parts
from ..progress import progress_bar
from ..prompts import spread
from ..tiny_world.checker import is_correct
from .adapters import ABLATION, Adapters
from .catalogue import BASE, METHODS, OURS, Ingredients
from .cells import (
    COPIES,
    FEATURES,
    FOLDER,
    SHOWN,
    VIEWS,
    Cell,
    CellResult,
    as_bytes,
    read_cell,
    share_out,
    write_cell,
)
from .methods import MethodResult, Task, base, measure, reno
from .metrics import image_encoder, image_features, small_copies
from .perceptual import load_lpips, views, weights_file
from .questions import Questions
from .settings import EvaluationConfig

SHOWN_PROMPTS = 8

_FIRST_SEED = 700_000_000
_LARGEST_CELL = 20_000  # passes, about: what a run that is cut off may lose
_SEED_STRIDE = 100_000_000  # beyond all candidates of best-of-N


def noise_seed(number: int, seed: int) -> int:
    """The seed of a prompt's noise, the same for all methods and numbers of steps.

    Args:
        number: of the prompt.
        seed: which of its noises.
    """
    return _FIRST_SEED + seed * _SEED_STRIDE + number


class Suite:
    """The cells of an evaluation, and how each is done.

    Args:
        parts: from `prepare`, for the prompts and all their wordings.
        adapters: on the device.
    """

    def __init__(
        self, config: EvaluationConfig, parts: Parts, questions: Questions, adapters: Adapters
    ) -> None:
        self.config, self.parts, self.adapters = config, parts, adapters
        self.prompts, self.captions = questions.prompts, questions.captions
        self.wordings = questions.wordings
        self.methods = config.chosen_methods(wordings=self.wordings is not None)
        self.encoder = image_encoder(parts.rewards)
        self.lpips = load_lpips(parts.accelerator.device)

    @cached_property
    def shown(self) -> list[int]:
        """Numbers of the prompts whose images are shown."""
        return spread(self.subset, SHOWN_PROMPTS)

    @cached_property
    def subset(self) -> list[int]:
        """Numbers of the prompts for methods that search, at the fewest steps."""
        return spread(range(len(self.prompts)), self.config.search_prompts)

    @cached_property
    def multi_step_subset(self) -> list[int]:
        """Numbers of the prompts for methods that search, at more steps."""
        return spread(self.subset, self.config.multi_step_search_prompts)

    def _subset(self, steps: int) -> list[int]:
        fewest = steps == min(self.config.chosen_steps)
        return self.subset if fewest else self.multi_step_subset

    @cached_property
    def cells(self) -> list[Cell]:
        """All there are, methods side by side, so that what slows a machine down for a while hits
        all of them."""
        return [cell for seed in range(self.config.seeds) for cell in self._cells_of_seed(seed)]

    def _cells_of_seed(self, seed: int) -> Iterator[Cell]:
        for steps in self.config.chosen_steps:
            for name in self.methods:
                entry = METHODS[name]
                if entry.slow and steps not in self.config.slow_steps:
                    continue
                for run in range(self.adapters.runs(name)):
                    yield from self._parts(name, steps, run, seed)
        for name in self.config.ablations:
            yield from self._parts(ABLATION + name, min(self.config.chosen_steps), 0, seed)

    def _parts(self, method: str, steps: int, run: int, seed: int) -> Iterator[Cell]:
        """All prompts of a method, in parts of whole batches."""
        entry = self.adapters.entry(method)
        prompts = self._subset(steps) if entry.searches else range(len(self.prompts))
        cost = entry.passes * steps + entry.once
        size = self.config.batch_size
        at_a_time = size * max(1, _LARGEST_CELL // (cost * size))
        for part, start in enumerate(range(0, len(prompts), at_a_time)):
            numbers = tuple(prompts[start : start + at_a_time])
            yield Cell(method, steps, run, seed, part, numbers, cost * len(numbers))

    def identity(self, cell: Cell) -> dict[str, Any]:
        """What decides a cell's numbers beside its place."""
        identity = {
            **self.parts.identity,
            "size": list(self.parts.size),
            "precision": self.config.dtype,
            "rewards": self.parts.rewards.weights,
            "batch_size": self.config.batch_size,
            "prompts": self._digest_of(cell.prompts),
        }
        if (digest := self.adapters.digest(cell.method, cell.run)) is not None:
            identity["adapter"] = digest
        if self._asks(cell):
            identity["wordings"] = _digest(json.dumps(self.wordings.by_prompt))
        if self.lpips is not None:
            identity["lpips"] = sha256_of(weights_file())
        if self.is_shown(cell):
            identity["shown"] = self._digest_of(self.shown)
        return identity

    def _digest_of(self, numbers: Sequence[int]) -> str:
        return digest([self.prompts[number] for number in numbers])

    def _asks(self, cell: Cell) -> bool:
        """Whether it is made of other wordings."""
        return self.adapters.entry(cell.method).needs == "wordings"

    def run(self) -> None:
        """Does this process's share of what is not done yet, under a progress bar.

        Raises:
            ValueError: a cell in the folder is damaged or belongs to another evaluation.
        """
        accelerator = self.parts.accelerator
        left = [cell for cell in self.cells if self.result(cell) is None]
        accelerator.wait_for_everyone()  # all have looked before anybody writes
        own = share_out(left, accelerator.num_processes)[accelerator.process_index]
        if own:
            self._warm_up(own)
        with progress_bar(
            total=sum(cell.cost for cell in own),
            desc=f"evaluating {len(own)} of {len(self.cells)} cells",
            unit="pass",
            unit_scale=True,
            disable=not accelerator.is_main_process,
        ) as bar:
            for cell in own:
                bar.set_postfix_str(f"{cell.method}, {cell.steps} steps")
                self._do(cell, bar)

    def result(self, cell: Cell) -> CellResult | None:
        """What came of a cell; None where it is not done.

        Raises:
            ValueError: its file is damaged or belongs to another evaluation.
        """
        return read_cell(cell.file(self.config.out), self.identity(cell))

    def _warm_up(self, cells: Sequence[Cell]) -> None:
        """Runs what a device does slowly the first time."""
        _, task = next(self._tasks(cells[0]))
        task.score(base(task).images)
        if any("reno" in cell.method for cell in cells):
            reno(1)(task)

    def _do(self, cell: Cell, bar: tqdm) -> None:
        method = self.adapters.entry(cell.method).make(self._ingredients(cell))
        results: list[MethodResult] = []
        correct: list[float] = []
        tensors: dict[str, list[Tensor]] = {COPIES: [], VIEWS: [], FEATURES: [], SHOWN: []}
        for numbers, task in self._tasks(cell):
            result = measure(task, method)
            images = result.images
            results.append(replace(result, images=images[:0]))  # they would fill the memory
            correct += self._correct(numbers, images)
            tensors[COPIES].append(as_bytes(small_copies(images)))
            if self.lpips is not None:
                tensors[VIEWS].append(as_bytes(views(images)))
            if self.encoder is not None:
                tensors[FEATURES].append(image_features(self.encoder, images).half())
            if self.is_shown(cell):
                rows = [row for row, number in enumerate(numbers) if number in self.shown]
                tensors[SHOWN].append(as_bytes(images[rows]))
            bar.update(cell.cost * len(numbers) // len(cell.prompts))
        joined = {name: torch.cat(parts) for name, parts in tensors.items() if parts}
        write_cell(cell.file(self.config.out), self._joined(cell, results, correct), joined)

    def is_shown(self, cell: Cell) -> bool:
        """Whether images of it are kept: of the first seed, at the fewest steps of all methods,
        else of base and HyperNoise."""
        fewest = cell.steps == min(self.config.chosen_steps)
        return (cell.seed, cell.run) == (0, 0) and (fewest or cell.method in (BASE, OURS))

    def _ingredients(self, cell: Cell) -> Ingredients:
        if self._asks(cell):
            return Ingredients(wordings=self.wordings.by_prompt, encode=self.parts.features.rows)
        return self.adapters.get(cell.method, cell.run)

    def _tasks(self, cell: Cell) -> Iterator[tuple[list[int], Task]]:
        """The batches of a cell, and the numbers of their prompts."""
        for start in range(0, len(cell.prompts), self.config.batch_size):
            numbers = list(cell.prompts[start : start + self.config.batch_size])
            prompts = [self.prompts[number] for number in numbers]
            yield (
                numbers,
                Task(
                    pipeline=self.parts.pipeline,
                    rewards=self.parts.rewards,
                    prompts=prompts,
                    conditioning=self.parts.features.rows(prompts),
                    seeds=[noise_seed(number, cell.seed) for number in numbers],
                    size=self.parts.size,
                    batch_size=self.config.batch_size,
                    steps=cell.steps,
                ),
            )

    def _correct(self, numbers: Sequence[int], images: Tensor) -> list[float]:
        """Whether the checker agrees with each image, nothing where there are no captions."""
        if self.captions is None:
            return []
        captions = [self.captions[number] for number in numbers]
        return [float(is_correct(image, c)) for image, c in zip(images, captions, strict=True)]

    def _joined(
        self, cell: Cell, batches: Sequence[MethodResult], correct: list[float]
    ) -> CellResult:
        """One result of those of the batches."""
        asking = self.wordings.seconds_per_prompt if self._asks(cell) else 0.0
        sizes = [len(batch.reward) for batch in batches]
        has_f = batches[0].f_squared is not None
        return CellResult(
            identity=self.identity(cell),
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
        """Estimated terms of KL(modulated noise || N(0, I)) of a hypernetwork, in nats, means over
        some noises; None where it was not asked for or f takes the noise's place.

        Args:
            method: `hypernoise`, or one of the ablation.
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
    """16 hexadecimal digits of some texts in their order."""
    return _digest("\0".join(texts))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
