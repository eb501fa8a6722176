"""The captions of the tiny world: GenEval's six categories, with simple shapes and colours.

Each caption carries its meaning (`objects`, `relation`), so that `scenes` can draw it and `checker`
can score an image of it. A fixed fifth of the captions is held out: no generator, reward or
hypernetwork in this repository sees them in training.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from itertools import permutations, product

SHAPES = ("circle", "square", "triangle")
COLORS = {
    "red": (0.90, 0.15, 0.15),
    "green": (0.15, 0.75, 0.20),
    "blue": (0.20, 0.30, 0.95),
    "yellow": (0.95, 0.85, 0.15),
    "purple": (0.60, 0.20, 0.70),
    "white": (0.95, 0.95, 0.95),
}
NUMBERS = ("one", "two", "three", "four")
RELATIONS = ("left of", "right of", "above", "below")
PREFIXES = ("", "a photo of ", "a picture of ", "a drawing of ")
CATEGORIES = ("single", "two", "counting", "colors", "position", "attribution")

_HELD_OUT_SHARE = 5  # one caption in five


@dataclass(frozen=True)
class Objects:
    """`count` objects of one `shape`; a `color` of None means any colour."""

    shape: str
    color: str | None = None
    count: int = 1

    def __str__(self) -> str:
        """The words in the caption, without an article."""
        noun = self.shape if self.count == 1 else self.shape + "s"
        return noun if self.color is None else f"{self.color} {noun}"


@dataclass(frozen=True)
class Caption:
    """A caption and its meaning.

    `objects` are in the order of the text; `relation`, if any, is that of the first object to the
    second: "a red circle above a square" has the relation "above".
    """

    text: str
    category: str
    objects: tuple[Objects, ...]
    relation: str | None = None

    def __post_init__(self) -> None:
        if self.category not in CATEGORIES:
            raise ValueError(f"unknown category {self.category!r}, choose from {CATEGORIES}")

    @property
    def held_out(self) -> bool:
        """True for the captions reserved for evaluation.

        A combination of colours and shapes is held out with every prefix; of the few captions
        without colours, each prefix is decided separately.
        """
        colored = any(objects.color for objects in self.objects)
        key = self.text
        for prefix in PREFIXES[1:]:
            key = key.removeprefix(prefix) if colored else key
        return hashlib.sha256(key.encode()).digest()[0] % _HELD_OUT_SHARE == 0


def _bare_captions() -> list[Caption]:
    """Every caption without a prefix."""
    things = [Objects(shape, color) for shape, color in product(SHAPES, COLORS)]
    pairs = [(a, b) for a, b in permutations(things, 2) if a.color != b.color]
    captions = [Caption(f"a {shape}", "single", (Objects(shape),)) for shape in SHAPES]
    captions += [Caption(f"a {thing}", "colors", (thing,)) for thing in things]
    captions += [
        Caption(f"a {a} and a {b}", "two", (Objects(a), Objects(b)))
        for a, b in permutations(SHAPES, 2)
    ]
    captions += [
        Caption(f"{NUMBERS[n - 1]} {many}", "counting", (many,))
        for n, shape, color in product(range(1, 5), SHAPES, (None, *COLORS))
        for many in [Objects(shape, color, n)]
    ]
    captions += [Caption(f"a {a} and a {b}", "attribution", (a, b)) for a, b in pairs]
    captions += [
        Caption(f"a {a} {relation} a {b}", "position", (a, b), relation)
        for (a, b), relation in product(pairs, RELATIONS)
    ]
    return captions


@cache
def all_captions() -> tuple[Caption, ...]:
    """All captions of the tiny world, in a fixed order."""
    return tuple(
        Caption(prefix + bare.text, bare.category, bare.objects, bare.relation)
        for prefix, bare in product(PREFIXES, _bare_captions())
    )


@cache
def captions_by_category(*, held_out: bool) -> dict[str, tuple[Caption, ...]]:
    """The captions of each category, either the held-out ones or those for training."""
    return {
        category: tuple(
            caption
            for caption in all_captions()
            if caption.category == category and caption.held_out == held_out
        )
        for category in CATEGORIES
    }


@cache
def _by_text() -> dict[str, Caption]:
    return {caption.text: caption for caption in all_captions()}


def parse_caption(text: str) -> Caption:
    """The caption with this text (case and surrounding space do not matter).

    Raises:
        ValueError: the text is not a caption of the tiny world.
    """
    caption = _by_text().get(" ".join(text.lower().split()))
    if caption is None:
        raise ValueError(
            f"{text!r} is not a caption of the tiny world; captions look like 'a red circle', "
            "'three green triangles', 'a blue square and a white circle' or "
            f"'a red circle left of a blue square' (colours {', '.join(COLORS)}; shapes "
            f"{', '.join(SHAPES)}; relations {', '.join(RELATIONS)})"
        )
    return caption
