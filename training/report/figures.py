"""The pictures of a report: images side by side, and curves over the steps of a run."""

import io
import math
import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ...hypernoise_core.atomic_file import write_atomically
from ...hypernoise_core.text import printable

_SMOOTHING = 0.9  # of the running mean drawn over the curves
_COLUMNS = 3  # of curves beside each other
_PROMPT_LINES = 6  # of a prompt above its column
_PROMPT_CHARACTERS = 400  # of which the lines hold the first
_MOST_COLUMNS = 100  # of a grid of images; files and memory have an end
_BLUE, _LIGHT_BLUE, _ORANGE = "#1f4e8c", "#9db8d9", "#c2571a"
_JPEG_QUALITY = 90


class GainPoint(NamedTuple):
    """A gain over the base at one step, with the ends of its 95% confidence interval."""

    step: int
    mean: float
    low: float
    high: float


class Point(NamedTuple):
    """A point of a path, with its label."""

    label: str
    x: float
    y: float


def write_png(path: Path, image: Tensor) -> None:
    """Writes an image (3, H, W) in [0, 1], whole or not at all."""
    from PIL import Image

    pixels = (image.permute(1, 2, 0).clamp(0, 1) * 255).round().byte().cpu().numpy()
    Image.fromarray(pixels).save(content := io.BytesIO(), format="PNG")
    write_atomically(path, content.getvalue())


def side_by_side(
    path: Path,
    prompts: list[str],
    rows: dict[str, Tensor],
    marks: dict[str, list[bool]] | None = None,
    *,
    dpi: int = 110,
) -> None:
    """Writes a grid: one column for each of the first 100 prompts, one row for each method.

    Args:
        path: of a .png or .jpg.
        rows: images (N, 3, H, W) in [0, 1] by method name, one for each prompt.
        marks: by method, whether each image is correct; frames are green or red accordingly.
        dpi: an image is about 1.3 times this many pixels wide.
    """
    shown = prompts[:_MOST_COLUMNS]
    columns = len(shown)
    figure = Figure(figsize=(1.35 * columns + 1.0, 1.5 * len(rows) + 0.8), dpi=dpi)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, (name, images) in zip(axes, rows.items(), strict=True):
        row[0].set_ylabel(_wrapped(name), fontsize=9, parse_math=False)
        for i, (axis, image) in enumerate(zip(row, images[:columns], strict=True)):
            axis.imshow(image.permute(1, 2, 0).float().clamp(0, 1).numpy())
            axis.set_xticks([])
            axis.set_yticks([])
            if marks:
                _frame(axis, "#2e9e4f" if marks[name][i] else "#cc3b3b")
    for axis, prompt in zip(axes[0], shown, strict=True):
        axis.set_title(_wrapped(prompt), fontsize=7, parse_math=False)
    with warnings.catch_warnings():
        # The font shows boxes for missing glyphs; a warning for each would bury the others.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.tight_layout(pad=0.6)
        _save(figure, path)


def _wrapped(text: str) -> str:
    text = printable(text)[:_PROMPT_CHARACTERS]
    return "\n".join(textwrap.wrap(text, 18, max_lines=_PROMPT_LINES, placeholder=" ..."))


def _title(axis: Axes, text: str) -> None:
    axis.set_title(printable(text), fontsize=10, parse_math=False)


def _frame(axis: Axes, color: str) -> None:
    for spine in axis.spines.values():
        spine.set_color(color)
        spine.set_linewidth(2.5)


def training_curves(path: Path, history: Mapping[str, Sequence[float]]) -> None:
    """Writes curves, raw and smoothed, of values at each step from the first on, by title."""
    _save(curves({name: dict(enumerate(values, 1)) for name, values in history.items()}), path)


def curves(history: Mapping[str, Mapping[int, float]]) -> Figure:
    """Curves, raw and smoothed, of values by step, by title, which counts values that are NaN.

    Raises:
        ValueError: there is nothing to plot.
    """
    figure, axes = _grid(len(history))
    for axis, (name, points) in zip(axes, history.items(), strict=True):
        values = [value if math.isfinite(value) else math.nan for value in points.values()]
        marker = "." if len(values) < 30 else None  # a single value would draw no line
        axis.plot(list(points), values, color=_LIGHT_BLUE, linewidth=0.8, marker=marker)
        axis.plot(list(points), _smooth(values), color=_BLUE, linewidth=1.8)
        missing = sum(map(math.isnan, values))
        _title(axis, f"{name} ({missing} NaN)" if missing else name)
    figure.tight_layout()
    return figure


def gain_curves(gains: Mapping[str, Sequence[GainPoint]]) -> Figure:
    """Gains over the base, which is the line at 0, with their confidence bands, by title.

    Raises:
        ValueError: there is nothing to plot.
    """
    figure, axes = _grid(len(gains))
    for axis, (name, points) in zip(axes, gains.items(), strict=True):
        axis.axhline(0, color="#777777", linewidth=0.8)
        _draw_gain(axis, points, _BLUE)
        _title(axis, name)
    figure.tight_layout()
    return figure


def two_gains(
    first: tuple[str, Sequence[GainPoint]], second: tuple[str, Sequence[GainPoint]]
) -> Figure:
    """Two gains in one picture with separate scales, whose zeros are at the same height."""
    figure = Figure(figsize=(9, 3.6), dpi=110)
    left = figure.subplots()
    right = left.twinx()
    left.axhline(0, color="#777777", linewidth=0.8)
    for axis, (name, points), color in ((left, first, _BLUE), (right, second, _ORANGE)):
        _draw_gain(axis, points, color)
        axis.set_ylabel(printable(f"gain in {name}"), color=color, parse_math=False)
        axis.tick_params(axis="y", colors=color)
    _align_zeros([(left, first[1]), (right, second[1])])
    left.set_xlabel("step")
    left.grid(alpha=0.3)
    figure.tight_layout()
    return figure


def gains_by_steps(panels: Mapping[str, Mapping[str, Sequence[GainPoint]]]) -> Figure:
    """Gains over the base by number of generator steps and method, one plot for each title.

    Raises:
        ValueError: there is nothing to plot.
    """
    figure, axes = _grid(len(panels))
    for axis, (title, methods) in zip(axes, panels.items(), strict=True):
        axis.axhline(0, color="#777777", linewidth=0.8)
        for i, (name, points) in enumerate(methods.items()):
            steps, means, lows, highs = zip(*points, strict=True)
            axis.plot(steps, means, color=f"C{i}", marker="o", markersize=4, label=name)
            axis.fill_between(steps, lows, highs, color=f"C{i}", alpha=0.12, linewidth=0)
        ticks = sorted({point.step for points in methods.values() for point in points})
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.set_xlabel("generator steps")
        _title(axis, f"gain in {title}")
    return _with_legend_below(figure, axes[0])


def paths(
    panels: Mapping[str, Mapping[str, Sequence[Point]]], x_title: str, *, log_x: bool = False
) -> Figure:
    """Labelled points joined by lines, by name, a plot for each title.

    Raises:
        ValueError: there is nothing to plot.
    """
    figure, axes = _grid(len(panels))
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for i, (name, points) in enumerate(lines.items()):
            labels, xs, ys = zip(*points, strict=True)
            axis.plot(xs, ys, color=f"C{i}", marker="o", markersize=5, label=name)
            for label, x, y in zip(labels, xs, ys, strict=True):
                offset = {"xytext": (3, 3), "textcoords": "offset points"}
                axis.annotate(printable(label), (x, y), fontsize=6, parse_math=False, **offset)
        axis.set_xscale("log" if log_x else "linear")
        axis.set_xlabel(x_title)
        _title(axis, title)
    return _with_legend_below(figure, axes[0])


def _with_legend_below(figure: Figure, axis: Axes) -> Figure:
    """The figure with one legend for all of its plots, which share their lines."""
    handles, labels = axis.get_legend_handles_labels()
    labels = list(map(printable, labels))
    legend = figure.legend(handles, labels, loc="lower center", ncols=4, fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    figure.tight_layout(rect=(0, 0.06 + 0.06 * math.ceil(len(labels) / 4), 1, 1))
    return figure


def _draw_gain(axis: Axes, points: Sequence[GainPoint], color: str) -> None:
    steps, means, lows, highs = zip(*points, strict=True)
    axis.fill_between(steps, lows, highs, color=color, alpha=0.15, linewidth=0)
    axis.vlines(steps, lows, highs, color=color, alpha=0.5, linewidth=1)
    axis.plot(steps, means, color=color, linewidth=1.8, marker="o", markersize=4)


def _align_zeros(axes: Sequence[tuple[Axes, Sequence[GainPoint]]]) -> None:
    """Sets limits that include all points and put 0 at the same height."""
    extents = []
    for _, points in axes:
        ends = [0.0, *filter(math.isfinite, (end for p in points for end in p[1:]))]
        extents.append((-min(ends), max(ends)))  # below and above 0
    shares = [below / (below + above) for below, above in extents if below + above]
    zero = min(0.9, max(0.1, sum(shares) / len(shares))) if shares else 0.5
    for (axis, _), (below, above) in zip(axes, extents, strict=True):
        span = 1.1 * max(below / zero, above / (1 - zero)) or 1.0
        axis.set_ylim(-zero * span, (1 - zero) * span)


def _grid(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with that many plots over steps."""
    if not count:
        raise ValueError("there is nothing to plot")
    columns = min(count, _COLUMNS)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(9, (3.2 if columns < _COLUMNS else 2.4) * rows), dpi=110)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.remove()
    for axis in axes[:count]:
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    return figure, axes[:count]


def _smooth(values: Iterable[float]) -> list[float]:
    """The running mean, which skips NaN."""
    smoothed, total, weight = [], 0.0, 0.0
    for value in values:
        if not math.isnan(value):
            total = _SMOOTHING * total + value
            weight = _SMOOTHING * weight + 1
        smoothed.append(total / weight if weight else math.nan)
    return smoothed


def as_png(figure: Figure) -> bytes:
    """The figure as the content of a .png file."""
    figure.savefig(content := io.BytesIO(), format="png")
    return content.getvalue()


def _save(figure: Figure, path: Path) -> None:
    kind = path.suffix.removeprefix(".")
    options = {"pil_kwargs": {"quality": _JPEG_QUALITY}} if kind == "jpg" else {}
    figure.savefig(content := io.BytesIO(), format=kind, **options)
    write_atomically(path, content.getvalue())
