"""The checker against drawn scenes, wrong captions, blank and noisy images."""

import random

import pytest
import torch

from hypernoise.training.tiny_world.captions import CATEGORIES, parse_caption
from hypernoise.training.tiny_world.checker import find_objects, is_correct, score_images
from hypernoise.training.tiny_world.scenes import (
    IMAGE_SIZE,
    Scene,
    Thing,
    draw,
    sample_captions,
    sample_scene,
)

RED, BLUE = (0.9, 0.15, 0.15), (0.2, 0.3, 0.95)


def drawn(count: int, seed: int):
    rng = random.Random(seed)
    captions = sample_captions(count, rng, held_out=bool(seed % 2))
    return captions, draw([sample_scene(caption, rng) for caption in captions])


def scene(*things: Thing) -> torch.Tensor:
    return draw([Scene((0.2, 0.2, 0.2), things)])[0]


@pytest.mark.parametrize("seed", [0, 1])
def test_drawn_scenes_are_right_in_every_category(seed):
    captions, images = drawn(1200, seed)
    score = score_images(images, captions)
    assert set(score.categories) == set(CATEGORIES)
    assert min(score.categories.values()) >= 0.99


def test_light_grain_does_not_disturb_it():
    captions, images = drawn(300, 2)
    grainy = (images + 0.03 * torch.randn_like(images)).clamp(0, 1)
    assert score_images(grainy, captions).mean >= 0.99


def test_blank_and_noisy_images_are_never_right():
    captions, _ = drawn(300, 4)
    generator = torch.Generator().manual_seed(0)
    shape = (300, 3, IMAGE_SIZE, IMAGE_SIZE)
    blank = torch.rand(300, 3, 1, 1, generator=generator).expand(shape)
    uniform = torch.rand(shape, generator=generator)
    gaussian = torch.randn(shape, generator=generator) * 0.2 + 0.3
    coarse = torch.nn.functional.interpolate(torch.rand(300, 3, 16, 16, generator=generator), 64)
    for images in (blank, uniform, gaussian, coarse):
        assert score_images(images, captions).mean == 0.0


@pytest.mark.parametrize(
    ("caption", "right"),
    [
        ("a red circle left of a blue square", True),
        ("a red circle right of a blue square", False),
        ("a red circle above a blue square", False),
        ("a blue square right of a red circle", True),
        ("a red circle and a blue square", True),
        ("a blue circle and a red square", False),
        ("a circle and a square", True),
        ("a circle and a triangle", False),
        ("a red circle", False),  # a second object that no word names
        ("two red circles", False),
    ],
)
def test_one_scene_against_many_captions(caption, right):
    image = scene(Thing("circle", RED, 16, 30, 9), Thing("square", BLUE, 46, 36, 9))
    assert is_correct(image, parse_caption(caption)) is right


PLACES = {"left of": (10, 32), "right of": (54, 32), "above": (32, 10), "below": (32, 54)}


@pytest.mark.parametrize("relation", PLACES)
def test_a_relation_holds_on_its_side_alone(relation):
    square = Thing("square", BLUE, 32, 32, 8)
    caption = parse_caption(f"a red circle {relation} a blue square")
    right = [
        is_correct(scene(Thing("circle", RED, *xy, 8), square), caption) for xy in PLACES.values()
    ]
    assert right == [name == relation for name in PLACES]


def test_counts_must_be_exact():
    things = [Thing("triangle", RED, x, 30, 7) for x in (14, 32, 50)]
    assert is_correct(scene(*things), parse_caption("three red triangles"))
    assert not is_correct(scene(*things[:2]), parse_caption("three red triangles"))
    assert not is_correct(scene(*things), parse_caption("two red triangles"))


def test_a_smeared_shape_is_no_shape():
    bar = torch.full((3, 64, 64), 0.1)
    bar[:, 28:34, 10:54] = torch.tensor(RED)[:, None, None]
    (seen,) = find_objects(bar)
    assert seen.color == "red" and seen.shape is None


def test_a_rectangle_is_no_square():
    image = torch.full((3, 64, 64), 0.1)
    image[:, 26:38, 21:43] = torch.tensor(RED)[:, None, None]
    (seen,) = find_objects(image)
    assert seen.shape is None


def test_clutter_beside_the_right_object_is_not_right():
    image, caption = scene(Thing("circle", RED, 18, 18, 9)), parse_caption("a red circle")
    assert is_correct(image, caption)
    specks, unknown = image.clone(), image.clone()
    for x in range(4, 60, 8):
        specks[:, 40:44, x : x + 4] = specks[:, 52:56, x : x + 4] = 0.95  # too small for objects
    unknown[:, 44:58, 40:54] = torch.tensor([0.0, 0.9, 0.9])[:, None, None]  # a colour of no name
    for cluttered in (specks, unknown):
        assert find_objects(cluttered) is None
        assert not is_correct(cluttered, caption)


def test_centroid_and_area_are_those_drawn():
    (seen,) = find_objects(scene(Thing("square", BLUE, 20.0, 41.0, 10)))
    assert (seen.x, seen.y) == pytest.approx((20, 41), abs=0.5)
    assert seen.area == pytest.approx((2 * 8.8) ** 2, rel=0.06)


def test_wrong_counts_of_captions_are_refused():
    with pytest.raises(ValueError, match="1 images for 0 captions"):
        score_images([torch.zeros(3, 64, 64)], [])
