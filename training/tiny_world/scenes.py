"""Scenes of the tiny world: placing the objects of a caption, and drawing them.

Letters: B images, N objects per image (unused ones have radius 0), H = W = IMAGE_SIZE pixels.
"""

import math
import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .captions import CATEGORIES, COLORS, SHAPES, Caption, captions_by_category

IMAGE_SIZE = 64
MAX_OBJECTS = 4
# How often each category is drawn in training, in the order of CATEGORIES.
TRAINING_SHARES = (0.06, 0.12, 0.24, 0.10, 0.28, 0.20)

# By object count, in pixels: radius of the objects, and their distance from the centre.
_RADIUS = {1: (10.0, 16.0), 2: (8.0, 11.0), 3: (7.5, 10.0), 4: (7.0, 9.0)}
_RING = {1: (0.0, 12.0), 2: (13.5, 17.0), 3: (15.0, 18.0), 4: (17.0, 20.0)}
_EXTENT = 1.35  # the farthest point of a shape from its centre, in radii
_GAP = 2.0  # minimum distance between two objects, in pixels
_SHIFT = 2.5  # maximum offset of the ring from the centre of the image, in pixels
_JITTER = 1.5  # maximum offset of an object from its place on the ring, in pixels
# Direction of the first object as seen from the second, in radians, y pointing down.
_DIRECTION = {"right of": 0.0, "below": math.pi / 2, "left of": math.pi, "above": -math.pi / 2}
_SLANT = math.radians(35)  # maximum deviation from that direction


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
    """A background colour (RGB in [0, 1]) and the objects on it, in the order of the caption."""

    background: tuple[float, float, float]
    things: tuple[Thing, ...]


def sample_captions(count: int, rng: random.Random, *, held_out: bool) -> list[Caption]:
    """`count` captions: first a category by its training share, then one of its captions."""
    pools = captions_by_category(held_out=held_out)
    categories = rng.choices(CATEGORIES, TRAINING_SHARES, k=count)
    return [rng.choice(pools[category]) for category in categories]


def sample_scene(caption: Caption, rng: random.Random) -> Scene:
    """A random scene that shows exactly what the caption says."""
    grey = rng.uniform(0.05, 0.33)
    background = tuple(min(1.0, max(0.0, grey + rng.uniform(-0.03, 0.03))) for _ in range(3))
    wanted = [(o.shape, o.color) for o in caption.objects for _ in range(o.count)]
    low, high = _RADIUS[len(wanted)]
    shared = rng.uniform(low, high)
    counted = caption.category == "counting"
    any_color = rng.choice(list(COLORS))  # counted objects look alike
    things = []
    for shape, color in wanted:
        radius = shared * rng.uniform(0.95, 1.05) if counted else rng.uniform(low, high)
        name = color or (any_color if counted else rng.choice(list(COLORS)))
        things.append(Thing(shape, _jitter(COLORS[name], rng), 0.0, 0.0, radius))
    return Scene(background, _place(things, caption.relation, rng))


def _jitter(color: tuple[float, float, float], rng: random.Random) -> tuple[float, float, float]:
    return tuple(min(1.0, max(0.0, channel + rng.uniform(-0.04, 0.04))) for channel in color)


def _place(things: list[Thing], relation: str | None, rng: random.Random) -> tuple[Thing, ...]:
    """Places objects evenly on a ring at a random angle, inside the image and without overlap.

    A single angle determines the layout, so layouts form a continuum: a small generator learns them
    in minutes, where arbitrary placements would take hours.
    """
    while True:
        ring = rng.uniform(*_RING[len(things)])
        middle = [IMAGE_SIZE / 2 + rng.uniform(-_SHIFT, _SHIFT) for _ in range(2)]
        if relation is None:
            first = rng.uniform(0, 2 * math.pi)
        else:
            first = _DIRECTION[relation] + rng.uniform(-_SLANT, _SLANT)
        placed = []
        for i, thing in enumerate(things):
            angle = first + 2 * math.pi * i / len(things)
            x, y = (
                at + ring * along + rng.uniform(-_JITTER, _JITTER)
                for at, along in zip(middle, (math.cos(angle), math.sin(angle)), strict=True)
            )
            placed.append(replace(thing, x=x, y=y))
        if (
            all(_inside(thing) for thing in placed)
            and _apart(placed)
            and (relation is None or holds(relation, *_centres(placed)))
        ):
            return tuple(placed)


def _inside(thing: Thing) -> bool:
    margin = _EXTENT * thing.radius
    return all(margin <= at <= IMAGE_SIZE - margin for at in (thing.x, thing.y))


def _centres(things: list[Thing]) -> tuple[tuple[float, float], ...]:
    return tuple((thing.x, thing.y) for thing in things)


def _apart(things: list[Thing]) -> bool:
    return all(
        (a.x - b.x) ** 2 + (a.y - b.y) ** 2 > (1.2 * (a.radius + b.radius) + _GAP) ** 2
        for i, a in enumerate(things)
        for b in things[:i]
    )


def holds(relation: str, first: tuple[float, float], second: tuple[float, float]) -> bool:
    """Whether `first` has the relation to `second`; points are (x, y) in pixels, y pointing down.

    The direction must be within 45 degrees of the relation's axis.
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
    """The share of each pixel that a shape covers: (B, H, W) in [0, 1], from signed distances."""
    axis = torch.arange(IMAGE_SIZE) + 0.5
    x, y, radius = (value[:, None, None] for value in geometry.unbind(-1))
    dx, dy = axis[None, None, :] - x, axis[None, :, None] - y
    circle = (dx**2 + dy**2).sqrt() - radius
    square = torch.maximum(dx.abs(), dy.abs()) - 0.88 * radius
    triangle = torch.maximum(dy, 0.866 * dx.abs() - 0.5 * dy) - 0.67 * radius
    distance = torch.stack([circle, square, triangle], 1)[torch.arange(len(kind)), kind]
    return torch.sigmoid(-3 * distance) * (radius > 0)
