"""Scenes of the tiny world: where the objects of a caption stand, and how they are drawn.

Letters: B images, N objects per image (unused ones have radius 0), H = W = IMAGE_SIZE pixels.
"""

import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .captions import CATEGORIES, COLORS, SHAPES, Caption, captions_by_category

IMAGE_SIZE = 64
MAX_OBJECTS = 4
# How often each category is drawn in training, in the order of CATEGORIES.
TRAINING_SHARES = (0.06, 0.12, 0.24, 0.10, 0.28, 0.20)

_RADIUS = {1: (9.0, 15.0), 2: (7.5, 11.0), 3: (6.5, 8.5), 4: (6.0, 8.0)}  # pixels, by object count
_EXTENT = 1.35  # the farthest point of a shape from its centre, in radii
_GAP = 2.0  # pixels between two objects, at least


@dataclass(frozen=True)
class Thing:
    """One drawn object: centre and radius in pixels, y pointing down, RGB in [0, 1]."""

    shape: str
    color: tuple[float, float, float]
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """A background colour (RGB in [0, 1]) and the things on it, in the caption's order."""

    background: tuple[float, float, float]
    things: tuple[Thing, ...]


def sample_captions(count: int, rng: random.Random, *, held_out: bool) -> list[Caption]:
    """`count` captions: a category by its training share, then any of its captions."""
    pools = captions_by_category(held_out=held_out)
    categories = rng.choices(CATEGORIES, TRAINING_SHARES, k=count)
    return [rng.choice(pools[category]) for category in categories]


def sample_scene(caption: Caption, rng: random.Random) -> Scene:
    """A random scene that is exactly what the caption says and holds nothing else."""
    grey = rng.uniform(0.05, 0.33)
    background = tuple(min(1.0, max(0.0, grey + rng.uniform(-0.03, 0.03))) for _ in range(3))
    wanted = [(o.shape, o.color) for o in caption.objects for _ in range(o.count)]
    low, high = _RADIUS[len(wanted)]
    shared = rng.uniform(low, high)
    counted = caption.category == "counting"
    any_color = rng.choice(list(COLORS))  # things that are counted look alike
    things = []
    for shape, color in wanted:
        radius = shared * rng.uniform(0.95, 1.05) if counted else rng.uniform(low, high)
        name = color or (any_color if counted else rng.choice(list(COLORS)))
        things.append(Thing(shape, _jitter(COLORS[name], rng), 0.0, 0.0, radius))
    return Scene(background, _place(things, caption.relation, rng))


def _jitter(color: tuple[float, float, float], rng: random.Random) -> tuple[float, float, float]:
    return tuple(min(1.0, max(0.0, channel + rng.uniform(-0.04, 0.04))) for channel in color)


def _place(things: list[Thing], relation: str | None, rng: random.Random) -> tuple[Thing, ...]:
    """Random centres inside the image, apart from each other, that fulfil the relation."""
    while True:
        placed: list[Thing] = []
        for thing in things:
            margin = _EXTENT * thing.radius + 1
            x, y = (rng.uniform(margin, IMAGE_SIZE - margin) for _ in range(2))
            placed.append(replace(thing, x=x, y=y))
        if _apart(placed) and (relation is None or holds(relation, *_centres(placed))):
            return tuple(placed)


def _centres(things: list[Thing]) -> tuple[tuple[float, float], ...]:
    return tuple((thing.x, thing.y) for thing in things)


def _apart(things: list[Thing]) -> bool:
    return all(
        (a.x - b.x) ** 2 + (a.y - b.y) ** 2 > (1.2 * (a.radius + b.radius) + _GAP) ** 2
        for i, a in enumerate(things)
        for b in things[:i]
    )


def holds(relation: str, first: tuple[float, float], second: tuple[float, float]) -> bool:
    """Whether `first` stands to `second` as `relation` says; points are (x, y), y down, pixels.

    The direction must lie within 45 degrees of the relation's axis.
    """
    dx, dy = first[0] - second[0], first[1] - second[1]
    along, across = {
        "left of": (-dx, dy),
        "right of": (dx, dy),
        "above": (-dy, dx),
        "below": (dy, dx),
    }[relation]
    return along > abs(across)


def draw(scenes: list[Scene]) -> Tensor:
    """Draws scenes with smooth edges: (B, 3, H, W) float32 in [0, 1]."""
    size = len(scenes), MAX_OBJECTS
    kind, geometry = torch.zeros(size, dtype=torch.long), torch.zeros(*size, 3)
    colors = torch.zeros(*size, 3)
    for b, scene in enumerate(scenes):
        for n, thing in enumerate(scene.things):
            kind[b, n] = SHAPES.index(thing.shape)
            geometry[b, n] = torch.tensor((thing.x, thing.y, thing.radius))
            colors[b, n] = torch.tensor(thing.color)
    images = torch.tensor([scene.background for scene in scenes])[:, :, None, None]
    images = images.expand(-1, -1, IMAGE_SIZE, IMAGE_SIZE)
    for n in range(MAX_OBJECTS):
        cover = _coverage(kind[:, n], geometry[:, n])[:, None]
        images = images * (1 - cover) + colors[:, n, :, None, None] * cover
    return images


def _coverage(kind: Tensor, geometry: Tensor) -> Tensor:
    """How much of each pixel a shape covers: (B, H, W) in [0, 1], from signed distances."""
    axis = torch.arange(IMAGE_SIZE) + 0.5
    x, y, radius = (value[:, None, None] for value in geometry.unbind(-1))
    dx, dy = axis[None, None, :] - x, axis[None, :, None] - y
    circle = (dx**2 + dy**2).sqrt() - radius
    square = torch.maximum(dx.abs(), dy.abs()) - 0.88 * radius
    triangle = torch.maximum(dy, 0.866 * dx.abs() - 0.5 * dy) - 0.67 * radius
    distance = torch.stack([circle, square, triangle], 1)[torch.arange(len(kind)), kind]
    return torch.sigmoid(-3 * distance) * (radius > 0)
