"""Images as files: which there are in a folder, and what is in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..hypernoise_core.rewards.reward import check_size

SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".avif"}
OTHER_SUFFIXES = {".gif", ".tif", ".tiff", ".heic", ".heif", ".jxl", ".jp2", ".tga", ".ppm"}
"""Of images that are not read, and are named therefore."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "AVIF")
"""What is read whatever the suffix says; other readers of Pillow start programs."""


def find_images(folder: Path) -> list[str]:
    """Paths of the images below a folder, relative to it, with slashes, in alphabetical order.

    Links to folders are followed. Images of `OTHER_SUFFIXES` are among them.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: there is no image in it, or one whose name is no text.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    files = _files(folder, {os.path.realpath(folder)})
    files = (path for path in files if path.suffix.lower() in SUFFIXES | OTHER_SUFFIXES)
    if not (names := sorted(path.relative_to(folder).as_posix() for path in files)):
        raise ValueError(f"no image in {folder}; looked for {', '.join(sorted(SUFFIXES))}")
    for name in names:
        if "\0" in name or not _is_utf8(name):
            raise ValueError(f"{folder} holds {name!r}, a name that is not UTF-8: rename the file")
    return names


def _files(folder: Path, above: set[str]) -> Iterator[Path]:
    """All files and folders below; a link to one of the folders `above`, in which one would walk
    for ever, is not followed."""
    for path in folder.iterdir():
        yield path
        if path.is_dir() and (real := os.path.realpath(path)) not in above:
            yield from _files(path, above | {real})


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_image(path: Path) -> Tensor:
    """(3, H, W) in [0, 1]; what is transparent becomes white, and the camera's turn is undone.

    Raises:
        ValueError: the file is no image, is damaged, or has a size that cannot be scored.
    """
    try:
        if not path.is_file():
            raise ValueError("it is no file")
        with Image.open(path, formats=FORMATS) as file:
            check_size(file.height, file.width)  # before it is unpacked
            image = _eight_bits(ImageOps.exif_transpose(file)).convert("RGBA")
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{path} cannot be read as an image: {error}; it is damaged, or none of "
            f"{', '.join(FORMATS)}: save it as one of them"
        ) from error
    except Exception as error:  # damage ends in errors of many kinds
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
    white = Image.new("RGBA", image.size, "white")
    pixels = np.asarray(Image.alpha_composite(white, image).convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of 16 bits with 8, which Pillow itself would cut off instead of scaling."""
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).clip(0, 65535) / 257
    return Image.fromarray(values.round().astype(np.uint8))
