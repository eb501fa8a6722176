"""Drawing: scores on images, and the plot of a comparison."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..hypernoise_core.rewards import Comparison

_SMALLEST = 256  # short side of a picture with text on it, in pixels
_LONGEST = 4096  # its long side, where it is drawn larger
_GREEN, _RED, _GREY = "#2e9e4f", "#cc3b3b", "#777777"
_PLOT = (640, 400)


def with_captions(images: torch.Tensor, captions: Sequence[str]) -> torch.Tensor:
    """Each image (B, H, W, 3) in [0, 1] with its caption in a strip at the bottom; small images are
    enlarged."""
    return torch.stack(
        [_with_caption(image, caption) for image, caption in zip(images, captions, strict=True)]
    )


def _with_caption(image: torch.Tensor, caption: str) -> torch.Tensor:
    picture = to_pil(image)
    factor = min(-(-_SMALLEST // min(picture.size)), _LONGEST // max(picture.size))
    if factor > 1:
        size = (picture.width * factor, picture.height * factor)
        picture = picture.resize(size, Image.Resampling.NEAREST)
    height = max(14, picture.height // 16)
    draw = ImageDraw.Draw(picture)
    top = picture.height - height - 6
    draw.rectangle((0, top, picture.width, picture.height), fill="black")
    draw.text((4, top + 2), caption, font=ImageFont.load_default(height), fill="white")
    return to_tensor(picture)


def comparison_plot(
    first: torch.Tensor, second: torch.Tensor, result: Comparison, names: tuple[str, str]
) -> torch.Tensor:
    """Win rate with its interval, and the difference of every pair in order: (1, H, W, 3)."""
    width, height = _PLOT
    picture = Image.new("RGB", _PLOT, "white")
    draw = ImageDraw.Draw(picture)
    font, small = ImageFont.load_default(18), ImageFont.load_default(13)
    left, right = 40, width - 40
    draw.text((left, 14), f"{names[1]} beats {names[0]} in {result.win_rate:.0%} of "
              f"{result.pairs} pairs", font=font, fill="black")  # fmt: skip
    interval = f"95% confidence interval: {result.low:.0%} to {result.high:.0%}"
    draw.text((left, 40), interval, font=small, fill=_GREY)
    y = 84

    def x_of(share: float) -> float:
        return left + share * (right - left)

    draw.rectangle((left, y - 8, right, y + 8), fill="#eeeeee")
    draw.rectangle((left, y - 8, x_of(result.win_rate), y + 8), fill=_GREEN)
    draw.line((x_of(0.5), y - 14, x_of(0.5), y + 14), fill=_GREY)
    draw.line((x_of(result.low), y, x_of(result.high), y), fill="black", width=3)
    for end in (result.low, result.high):
        draw.line((x_of(end), y - 6, x_of(end), y + 6), fill="black", width=3)
    _bars(draw, (second - first).sort().values.tolist(), (left, 140, right, height - 40))
    text = f"score of {names[1]} minus score of {names[0]}, pair by pair; mean "
    draw.text((left, 112), f"{text}{result.mean_difference:+.4g}", font=small, fill=_GREY)
    return to_tensor(picture)[None]


def _bars(draw: ImageDraw.ImageDraw, values: list[float], box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box
    highest, lowest = max(*values, 0.0), min(*values, 0.0)
    span = (highest - lowest) or 1.0
    zero = top + highest / span * (bottom - top)
    step = (right - left) / len(values)
    for i, value in enumerate(values):
        y = zero - value / span * (bottom - top)
        x = left + i * step
        color = _GREEN if value > 0 else _RED
        draw.rectangle((x, min(y, zero), x + max(step - 1, 1), max(y, zero)), fill=color)
    draw.line((left, zero, right, zero), fill="black")
    font = ImageFont.load_default(12)
    for value, y in ((highest, top - 15), (lowest, bottom + 3)):
        draw.text((left, y), f"{value:+.3g}", font=font, fill=_GREY)


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """An IMAGE of one picture without the batch: (H, W, 3) in [0, 1]."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), np.float32) / 255)


def to_pil(image: torch.Tensor) -> Image.Image:
    """(H, W, 3) in [0, 1] -> a picture."""
    return Image.fromarray((image.float().clamp(0, 1) * 255).round().byte().cpu().numpy())
