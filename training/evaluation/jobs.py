"""The unit of an evaluation: one method at one number of generator steps, for some prompts.

A job of the suite writes its result when it is done; a rerun does only the jobs that are missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialise
from torch import Tensor

from ...hypernoise_core.atomic_file import write_atomically
from ...hypernoise_core.strict_json import parse_object
from ...hypernoise_core.tensor_file import read_tensors
from ...hypernoise_core.text_file import read_text

FOLDER = "cells"
"""Holds the results in the evaluation's folder; earlier versions, whose evaluations can be resumed,
named it so."""
FEATURES, COPIES, VIEWS, SHOWN = "features", "copies", "views", "shown"


@dataclass(frozen=True)
class Job:
    """What to generate: an image of each prompt from each seed's noise."""

    method: str
    steps: int
    run: int
    """Which of several adapters, trained from different seeds."""
    seeds: tuple[int, ...]
    """Which of a prompt's noises; a job of the suite has one."""
    part: int
    """Which part of the prompts."""
    prompts: tuple[int, ...]
    """Numbers of the prompts."""
    cost: int
    """Approximate number of forward passes."""

    @property
    def seed(self) -> int:
        """The only seed."""
        (seed,) = self.seeds
        return seed

    def file(self, out: Path) -> Path:
        """Where the suite stores the numbers; tensors are stored beside them."""
        folder = out / FOLDER / f"steps_{self.steps:02d}" / self.method
        return folder / f"run_{self.run}_seed_{self.seed}_part_{self.part}.json"


@dataclass(frozen=True)
class JobResult:
    """The numbers of a job; lists have one for each of its prompts."""

    identity: Mapping[str, Any]
    """What the numbers depend on: a result of another identity is not reused."""
    seconds_per_image: list[float]
    """Of each batch."""
    forward_passes: float
    """Per image."""
    backward_passes: float
    total: list[float]
    """The weighted sum of the rewards."""
    scores: dict[str, list[float]]
    """By reward."""
    correct: list[float] | None
    """Whether the checker agrees; None if the prompts are not captions of the tiny world."""
    f_squared: list[float] | None
    """Mean f^2 of an element; None without an f."""


def distribute(jobs: Sequence[Job], processes: int) -> list[list[Job]]:
    """The jobs of each process, so that all processes have about the same cost.

    Within a process they keep their order.
    """
    loads, shares = [0] * processes, [[] for _ in range(processes)]
    for job in sorted(jobs, key=lambda job: -job.cost):
        least = loads.index(min(loads))
        loads[least] += job.cost
        shares[least].append(job)
    place = {job: i for i, job in enumerate(jobs)}
    return [sorted(share, key=place.__getitem__) for share in shares]


def write_result(file: Path, result: JobResult, tensors: Mapping[str, Tensor]) -> None:
    """Writes a job's tensors, then its numbers, which mark it as done."""
    stored = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_atomically(file.with_suffix(".safetensors"), serialise(stored))
    write_atomically(file, (json.dumps(asdict(result)) + "\n").encode())


def read_result(file: Path, identity: Mapping[str, Any]) -> JobResult | None:
    """The result of a job; None if there is none.

    Raises:
        ValueError: the file is damaged, or the result has another identity.
    """
    if not file.is_file():
        return None
    try:
        result = JobResult(**parse_object(read_text(file)))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is damaged; delete it to run the job again: {error}") from error
    changed = [name for name, value in identity.items() if result.identity.get(name) != value]
    if changed:
        differences = ", ".join(
            f"{name} was {result.identity.get(name)!r} and is {identity[name]!r}"
            for name in changed
        )
        raise ValueError(
            f"{file} belongs to another evaluation: {differences}. Choose another --out, or delete "
            f"the file"
        )
    return result


def read_job_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors stored beside a job's numbers.

    `copies` (N, 3, SMALL, SMALL) of all images, `views` (N, 3, VIEW, VIEW) if LPIPS is measured,
    `features` (N, D) if a reward has a CLIP, and `shown` (K, 3, H, W) of the images that the report
    shows. Images are in [0, 1].

    Raises:
        TensorFileError: the file is missing or damaged.
    """
    tensors, _ = read_tensors(file.with_suffix(".safetensors"))
    return {name: t.float() / 255 if t.dtype == torch.uint8 else t for name, t in tensors.items()}


def as_bytes(images: Tensor) -> Tensor:
    """Images in [0, 1] as uint8, as they are stored."""
    return (images * 255).round().to(torch.uint8)
