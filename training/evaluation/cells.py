"""The unit of an evaluation: one method at one number of steps from one seed, for all prompts or a
part of them. It is written when it is done, and a rerun goes on with the others."""

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
"""In the evaluation's folder, where they lie."""
FEATURES, COPIES, VIEWS, SHOWN = "features", "copies", "views", "shown"


@dataclass(frozen=True)
class Cell:
    """What is to be done."""

    method: str
    steps: int
    run: int
    """Which of several adapters, trained from different seeds."""
    seed: int
    """Which of a prompt's noises."""
    part: int
    """Which part of the prompts."""
    prompts: tuple[int, ...]
    """Numbers of the prompts."""
    cost: int
    """Forward passes, about."""

    def file(self, out: Path) -> Path:
        """Where its numbers lie; its tensors lie beside them."""
        folder = out / FOLDER / f"steps_{self.steps:02d}" / self.method
        return folder / f"run_{self.run}_seed_{self.seed}_part_{self.part}.json"


@dataclass(frozen=True)
class CellResult:
    """What came of it; lists have a number for each of the cell's prompts."""

    identity: Mapping[str, Any]
    """What decides the numbers: a result of another identity is not taken over."""
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
    """Whether the checker agrees; None where the prompts are no captions of the tiny world."""
    f_squared: list[float] | None
    """Mean f^2 of an element; None without an f."""


def share_out(cells: Sequence[Cell], processes: int) -> list[list[Cell]]:
    """The cells of each process, so that all have about as much to do.

    In a process they keep their order.
    """
    loads, shares = [0] * processes, [[] for _ in range(processes)]
    for cell in sorted(cells, key=lambda cell: -cell.cost):
        least = loads.index(min(loads))
        loads[least] += cell.cost
        shares[least].append(cell)
    place = {cell: i for i, cell in enumerate(cells)}
    return [sorted(share, key=place.__getitem__) for share in shares]


def write_cell(file: Path, result: CellResult, tensors: Mapping[str, Tensor]) -> None:
    """Writes a cell's tensors and then its numbers, which say that it is done."""
    stored = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_atomically(file.with_suffix(".safetensors"), serialise(stored))
    write_atomically(file, (json.dumps(asdict(result)) + "\n").encode())


def read_cell(file: Path, identity: Mapping[str, Any]) -> CellResult | None:
    """What a cell's file holds; None where there is none.

    Raises:
        ValueError: it is damaged, or of another identity.
    """
    if not file.is_file():
        return None
    try:
        result = CellResult(**parse_object(read_text(file)))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is damaged; delete it, and it is made again: {error}") from error
    changed = [name for name, value in identity.items() if result.identity.get(name) != value]
    if changed:
        differences = ", ".join(
            f"{name} was {result.identity.get(name)!r} and is {identity[name]!r}"
            for name in changed
        )
        raise ValueError(
            f"{file} belongs to another evaluation: {differences}. Choose another --out, or delete "
            f"that file"
        )
    return result


def read_tensors_of(file: Path) -> dict[str, Tensor]:
    """The tensors beside a cell's numbers.

    `copies` (N, 3, SMALL, SMALL) of all images, `views` (N, 3, VIEW, VIEW) where LPIPS is measured,
    `features` (N, D) where a reward has a CLIP, and `shown` (K, 3, H, W) of the images that are
    kept. Images are in [0, 1].

    Raises:
        TensorFileError: the file is missing or damaged.
    """
    tensors, _ = read_tensors(file.with_suffix(".safetensors"))
    return {name: t.float() / 255 if t.dtype == torch.uint8 else t for name, t in tensors.items()}


def as_bytes(images: Tensor) -> Tensor:
    """Images in [0, 1] as they are stored."""
    return (images * 255).round().to(torch.uint8)
