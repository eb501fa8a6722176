"""Captions: what they mean, and which of them no model may see."""

import random

import pytest

from hypernoise.training.tiny_world.captions import (
    CATEGORIES,
    PREFIXES,
    Objects,
    all_captions,
    captions_by_category,
    parse_caption,
)
from hypernoise.training.tiny_world.recipe.pool import draw_pool
from hypernoise.training.tiny_world.scenes import sample_captions


def test_a_caption_knows_what_it_asks_for():
    caption = parse_caption(" A photo of a red circle left of  a blue square ")
    assert caption.category == "position"
    assert caption.objects == (Objects("circle", "red"), Objects("square", "blue"))
    assert caption.relation == "left of"
    assert parse_caption("three green triangles").objects == (Objects("triangle", "green", 3),)


def test_captions_are_distinct_and_cover_every_category_on_both_sides_of_the_split():
    captions = all_captions()
    assert len({caption.text for caption in captions}) == len(captions)
    for held_out in (False, True):
        assert all(captions_by_category(held_out=held_out)[name] for name in CATEGORIES)


def test_about_a_fifth_is_held_out():
    share = sum(caption.held_out for caption in all_captions()) / len(all_captions())
    assert 0.15 < share < 0.3


def test_a_held_out_combination_is_held_out_under_every_prefix():
    held_out = captions_by_category(held_out=True)["colors"]
    bare = {caption.text for caption in held_out if caption.text.startswith("a ")} - {
        caption.text for caption in held_out if caption.text.startswith(PREFIXES[1:])
    }
    assert bare
    for text in bare:
        assert all(parse_caption(prefix + text).held_out for prefix in PREFIXES)


def test_training_samples_and_pools_hold_no_held_out_caption():
    rng = random.Random(3)
    assert not any(c.held_out for c in sample_captions(2000, rng, held_out=False))
    assert all(c.held_out for c in sample_captions(200, rng, held_out=True))
    pool = draw_pool(300, seed=5)
    assert not any(caption.held_out for caption in pool.captions)


def _slots(caption):
    return [caption.relation, *(v for o in caption.objects for v in (o.shape, o.color, o.count))]


def test_lookalikes_differ_from_the_caption_in_one_slot_or_in_the_order_of_its_words():
    pool = draw_pool(3000, seed=1)
    rng = random.Random(0)
    index = next(i for i, c in enumerate(pool.captions) if c.category == "position")
    slots = _slots(pool.captions[index])
    for other in pool.lookalikes(index, 40, rng)[1:]:
        others = _slots(pool.captions[other])
        apart = sum(a != b for a, b in zip(slots, others, strict=True))
        assert apart == 1 or (apart > 1 and sorted(map(str, slots)) == sorted(map(str, others)))


def test_an_unknown_caption_is_refused_with_examples():
    with pytest.raises(ValueError, match="three green triangles"):
        parse_caption("a photo of an astronaut")
