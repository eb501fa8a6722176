"""A prompt of a benchmark, and the files of its images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ....hypernoise_core.atomic_file import write_atomically
from ...report.figures import write_png


@dataclass(frozen=True)
class Item:
    """A prompt, and the files that its images are written to."""

    prompt: str
    files: tuple[str, ...]
    """Below the method's folder: one for each image, or a single one for a 2 x 2 grid of four."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Contents of further files, by name."""

    def is_done(self, folder: Path) -> bool:
        """Whether all images are there."""
        return all((folder / name).is_file() for name in self.files)

    def write(self, folder: Path, images: Tensor) -> None:
        """Writes images (S, 3, H, W) in [0, 1]."""
        for name, text in self.texts.items():
            write_atomically(folder / name, text.encode())
        pictures = images if len(self.files) == len(images) else [_two_by_two(images)]
        for name, picture in zip(self.files, pictures, strict=True):
            write_png(folder / name, picture)


def find(checkout: Path, name: str, inside: str) -> Path:
    """A file or folder of a benchmark's checkout.

    Args:
        checkout: the checkout, or the folder around it.
        name: of the file or folder, relative to the checkout.
        inside: the checkout's name in the folder around it.

    Raises:
        FileNotFoundError: it is not there; names both places.
    """
    places = [checkout / name, checkout / inside / name]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise FileNotFoundError(
            f"{name} is missing; looked for {' and '.join(map(str, places))}: --data_dir must be "
            f"the benchmark's checkout"
        )
    return found


def _two_by_two(images: Tensor) -> Tensor:
    """(4, 3, H, W) -> (3, 2H, 2W), row by row."""
    top, bottom = (torch.cat(list(pair), dim=2) for pair in images.split(2))
    return torch.cat([top, bottom], dim=1)
