"""A pool of captioned scenes, drawn once, on which the models of the tiny world are trained."""

import random
from collections import defaultdict
from dataclasses import dataclass, field, replace
from itertools import product

import torch
from torch import Tensor

from ..captions import PREFIXES, Caption
from ..scenes import draw, sample_captions, sample_scene

_CHUNK = 256  # images drawn at a time


@dataclass(frozen=True)
class Pool:
    """`images` (N, 3, H, W) uint8 and their N `captions`, none of them held out."""

    images: Tensor
    captions: list[Caption]
    _by_caption: dict[str, list[int]] = field(repr=False)
    _neighbours: dict[str, list[str]] = field(repr=False)

    def __len__(self) -> int:
        return len(self.captions)

    def batch(self, indices: list[int]) -> Tensor:
        """Images (B, 3, H, W) float32 in [0, 1]."""
        return self.images[indices].float() / 255

    def lookalikes(self, index: int, count: int, rng: random.Random) -> list[int]:
        """`index`, and images for `count - 1` captions that differ from its caption in one word.

        Swapped objects count as one difference. Captions may repeat if there are few.
        """
        texts = self._neighbours[self.captions[index].text]
        chosen = [rng.choice(texts) for _ in range(count - 1)] if texts else []
        return [index, *(rng.choice(self._by_caption[text]) for text in chosen)]


def draw_pool(size: int, seed: int) -> Pool:
    """Draws `size` scenes of training captions."""
    rng = random.Random(seed)
    captions = sample_captions(size, rng, held_out=False)
    images = []
    for start in range(0, size, _CHUNK):
        scenes = [sample_scene(caption, rng) for caption in captions[start : start + _CHUNK]]
        images.append((draw(scenes) * 255).round().to(torch.uint8))
    by_caption = defaultdict(list)
    for i, caption in enumerate(captions):
        by_caption[caption.text].append(i)
    distinct = {caption.text: caption for caption in captions}
    return Pool(torch.cat(images), captions, dict(by_caption), _find_neighbours(distinct))


def _find_neighbours(captions: dict[str, Caption]) -> dict[str, list[str]]:
    """For each text, the texts that agree in all slots but one, or have the same words."""
    buckets = defaultdict(list)
    for text, caption in captions.items():
        for key in _keys(caption):
            buckets[key].append(text)
    return {
        text: sorted({other for key in _keys(caption) for other in buckets[key]} - {text})
        for text, caption in captions.items()
    }


def _keys(caption: Caption) -> list[tuple]:
    prefix = max((p for p in PREFIXES if caption.text.startswith(p)), key=len)
    slots = [("relation", caption.relation)]
    for i, objects in enumerate(caption.objects):
        slots += [((i, name), getattr(objects, name)) for name in ("shape", "color", "count")]
    keys = [(caption.category, prefix, i, *slots[:i], *slots[i + 1 :]) for i in range(len(slots))]
    if len(caption.objects) == 2:
        keys.append((caption.category, prefix, "same words", *_unordered(caption)))
    return keys


def _unordered(caption: Caption) -> tuple:
    """A key that is the same for all ways to swap the objects or colours of a caption with two
    objects."""
    a, b = caption.objects
    variants = (
        (replace(a, color=ca), replace(b, color=cb))
        for (a, b), (ca, cb) in product(((a, b), (b, a)), ((a.color, b.color), (b.color, a.color)))
    )
    return (min(str((x, y)) for x, y in variants), caption.relation)
