"""Image files: finding them in a folder, and reading them."""

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
"""Image formats that are not read; such files are reported instead of being ignored."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "AVIF")
"""The formats that are read, whatever the suffix; some of Pillow's other readers run programs."""


def find_images(folder: Path) -> list[str]:
    """Paths of all images in a folder and its subfolders, sorted.

    The paths are relative to the folder and use forward slashes. Links to folders are followed.
    Images with one of `OTHER_SUFFIXES` are included.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: there is no image in it, or a file name that is not valid text.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    files = _files(folder, {os.path.realpath(folder)})
    files = (path for path in files if path.suffix.lower() in SUFFIXES | OTHER_SUFFIXES)
    if not (names := sorted(path.relative_to(folder).as_posix() for path in files)):
        raise ValueError(f"no images in {folder}; searched for {', '.join(sorted(SUFFIXES))}")
    for name in names:
        if "\0" in name or not _is_utf8(name):
            raise ValueError(f"{folder}: the file name {name!r} is not UTF-8; rename the file")
    return names


def _files(folder: Path, above: set[str]) -> Iterator[Path]:
    """All files and folders below. A link to one of the folders `above` is not followed, as the
    walk would never end."""
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
    """(3, H, W) in [0, 1], on white where transparent, rotated as its EXIF orientation says.

    Raises:
        ValueError: the file is not an image, is damaged, or has a size that cannot be scored.
    """
    try:
        if not path.is_file():
            raise ValueError("not a file")
        with Image.open(path, formats=FORMATS) as file:
            check_size(file.height, file.width)  # before it is decompressed
            image = _eight_bits(ImageOps.exif_transpose(file)).convert("RGBA")
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{path} cannot be read as an image: {error}; it is damaged or in another format than "
            f"{', '.join(FORMATS)}: save it as one of these"
        ) from error
    except Exception as error:  # damaged files raise errors of many kinds
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
    white = Image.new("RGBA", image.size, "white")
    pixels = np.asarray(Image.alpha_composite(white, image).convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def _eight_bits(image: Image.Image) -> Image.Image:
    """A 16-bit greyscale image scaled to 8 bits; Pillow itself would clip it."""
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).clip(0, 65535) / 257
    return Image.fromarray(values.round().astype(np.uint8))
