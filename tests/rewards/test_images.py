"""What rewards see of an image: the arithmetic of torchvision, done once."""

import pytest
import torch
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize

from hypernoise.hypernoise_core.rewards.images import CLIP_MEAN, CLIP_STD, ImageBatch, Preprocess

SIZES = [
    (height, width)
    for height in (16, 31, 100, 223, 224, 225, 301)
    for width in (16, 57, 224, 299)
    if max(height, width) < 12 * min(height, width)
]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("size", [64, 224])
def test_pixels_are_those_of_torchvision(height, width, size):
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(height))
    theirs = Compose(
        [
            Resize(size, interpolation=InterpolationMode.BICUBIC),
            CenterCrop(size),
            Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    torch.testing.assert_close(Preprocess(size)(images), theirs(images))


def test_images_are_preprocessed_once_for_each_way_of_doing_it():
    batch = ImageBatch(torch.rand(1, 3, 40, 40))
    assert batch.pixels(Preprocess(32)) is batch.pixels(Preprocess(32))
    assert batch.pixels(Preprocess(32)).shape != batch.pixels(Preprocess(16)).shape
    assert not torch.equal(
        batch.pixels(Preprocess(32)), batch.pixels(Preprocess(32, mean=(0, 0, 0)))
    )


def test_half_precision_images_are_resized_in_full_precision():
    images = torch.rand(1, 3, 50, 70)
    assert Preprocess(32)(images.bfloat16()).dtype == torch.float32
