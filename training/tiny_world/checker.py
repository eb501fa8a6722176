"""An exact checker: finds the objects in an image of the tiny world without a model, and decides
whether they match a caption.

Segmentation: a pixel is modelled as background plus a share of one palette colour, both found by
least squares. Connected components of one colour are objects. The shape of an object is the ideal
shape of the same area and centroid (zeroth and first moments) with the best overlap, if its second
moments are as round as that shape's. The categories are GenEval's (arXiv 2310.11513), but the
checker is stricter in one respect: an image must not show anything the caption does not name.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from torch import Tensor

from .captions import CATEGORIES, COLORS, SHAPES, Caption, Objects
from .scenes import holds

_MIN_SHARE = 0.5  # of a palette colour in a pixel that belongs to an object
_MAX_RESIDUAL = 0.30  # RGB distance of a pixel from its best mix
_MIN_AREA = 40  # pixels; anything smaller is a speck, not an object
_MAX_SPECKS = 0.2  # share of the foreground allowed in specks and unknown colours
_MIN_OVERLAP = 0.75  # intersection over union with the ideal shape
_MAX_ELONGATION = 1.6  # ratio of the axes' second moments
_PALETTE = np.array(list(COLORS.values()), dtype=np.float32)


@dataclass(frozen=True)
class Seen:
    """An object found in an image; centroid in pixels (y down), area in pixels.

    `shape` is None if no ideal shape fits.
    """

    color: str
    shape: str | None
    x: float
    y: float
    area: int


def find_objects(image: Tensor) -> list[Seen] | None:
    """The objects in an image (3, H, W) in [0, 1]; None if the image is cluttered."""
    pixels = image.detach().float().clamp(0, 1).permute(1, 2, 0).cpu().numpy()
    labels, foreground = _segment(pixels)
    objects, explained = [], 0
    for index, color in enumerate(COLORS):
        components, count = ndimage.label(labels == index)
        areas = np.bincount(components.ravel(), minlength=count + 1)
        for component in range(1, count + 1):
            if areas[component] >= _MIN_AREA:
                objects.append(_describe(components == component, color))
                explained += areas[component]
    if foreground and 1 - explained / foreground > _MAX_SPECKS:
        return None
    return objects


def _segment(pixels: np.ndarray) -> tuple[np.ndarray, int]:
    """Palette index of each pixel (H, W), -1 for background and unknown; count of foreground
    pixels."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    background = np.median(border, axis=0)
    offset = pixels - background  # (H, W, 3)
    axes = _PALETTE - background  # (C, 3)
    share = (offset @ axes.T / (axes**2).sum(1)).clip(0, 1.25)  # (H, W, C)
    residual = np.linalg.norm(offset[:, :, None] - share[..., None] * axes, axis=-1)
    best = residual.argmin(-1)
    best_share = np.take_along_axis(share, best[..., None], -1)[..., 0]
    best_residual = np.take_along_axis(residual, best[..., None], -1)[..., 0]
    different = np.linalg.norm(offset, axis=-1) > _MAX_RESIDUAL
    known = (best_share > _MIN_SHARE) & (best_residual < _MAX_RESIDUAL)
    foreground = known | (different & (best_residual >= _MAX_RESIDUAL))
    return np.where(known, best, -1), int(foreground.sum())


def _describe(mask: np.ndarray, color: str) -> Seen:
    ys, xs = np.nonzero(mask)
    x, y, area = float(xs.mean()), float(ys.mean()), len(xs)
    overlap = {shape: _overlap(mask, _ideal(shape, x, y, area, mask.shape)) for shape in SHAPES}
    shape = max(overlap, key=overlap.__getitem__)
    axes = np.linalg.eigvalsh(np.cov(np.stack([xs, ys])))
    round_enough = axes[1] <= _MAX_ELONGATION * axes[0]
    fits = overlap[shape] >= _MIN_OVERLAP and round_enough
    return Seen(color, shape if fits else None, x + 0.5, y + 0.5, area)


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def _ideal(shape: str, x: float, y: float, area: int, size: tuple[int, int]) -> np.ndarray:
    """The mask of an upright shape with this centroid and area."""
    dy, dx = np.mgrid[: size[0], : size[1]].astype(np.float32)
    dx, dy = dx - x, dy - y
    if shape == "circle":
        return dx**2 + dy**2 <= area / np.pi
    if shape == "square":
        return np.maximum(abs(dx), abs(dy)) <= np.sqrt(area) / 2
    inradius = np.sqrt(area / (3 * np.sqrt(3)))  # equilateral triangle: area = 3 sqrt(3) r^2
    return np.maximum(dy, np.sqrt(3) / 2 * abs(dx) - dy / 2) <= inradius


def is_correct(image: Tensor, caption: Caption) -> bool:
    """Whether the image (3, H, W) in [0, 1] shows exactly what the caption says."""
    found = find_objects(image)
    if found is None or len(found) != sum(objects.count for objects in caption.objects):
        return False
    if len(caption.objects) == 1:
        return all(_is(seen, caption.objects[0]) for seen in found)
    first, second = caption.objects
    return any(
        _is(a, first)
        and _is(b, second)
        and (caption.relation is None or holds(caption.relation, (a.x, a.y), (b.x, b.y)))
        for a, b in (found, found[::-1])
    )


def _is(seen: Seen, wanted: Objects) -> bool:
    return seen.shape == wanted.shape and wanted.color in (None, seen.color)


@dataclass(frozen=True)
class CheckerScore:
    """Share of correct images, by category and as the mean of the categories, all in [0, 1]."""

    mean: float
    categories: dict[str, float]


def score_images(images: Iterable[Tensor], captions: Sequence[Caption]) -> CheckerScore:
    """Scores images, each (3, H, W) in [0, 1], with one caption per image.

    Raises:
        ValueError: there are no images, or their number differs from that of the captions.
    """
    images = list(images)
    if not images or len(images) != len(captions):
        raise ValueError(f"got {len(images)} images for {len(captions)} captions")
    correct, total = Counter(), Counter()
    for image, caption in zip(images, captions, strict=True):
        correct[caption.category] += is_correct(image, caption)
        total[caption.category] += 1
    shares = {name: correct[name] / total[name] for name in CATEGORIES if total[name]}
    return CheckerScore(sum(shares.values()) / len(shares), shares)
