"""The pictures of a report: images side by side, and the curves of a training run."""

import textwrap
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from ..trainer import History

_SMOOTHING = 0.9  # of the running mean drawn over the curves


def side_by_side(
    path: Path,
    prompts: list[str],
    rows: dict[str, Tensor],
    marks: dict[str, list[bool]] | None = None,
) -> None:
    """Writes a grid: a column for each prompt, a row for each method.

    Args:
        rows: images (N, 3, H, W) in [0, 1] by method name, one for each prompt.
        marks: by method, whether each image is right; its frame is green or red then.
    """
    columns = len(prompts)
    figure = Figure(figsize=(1.35 * columns + 1.0, 1.5 * len(rows) + 0.8), dpi=110)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, (name, images) in zip(axes, rows.items(), strict=True):
        row[0].set_ylabel(name, fontsize=9)
        for i, (axis, image) in enumerate(zip(row, images, strict=True)):
            axis.imshow(image.permute(1, 2, 0).float().clamp(0, 1).numpy())
            axis.set_xticks([])
            axis.set_yticks([])
            if marks:
                _frame(axis, "#2e9e4f" if marks[name][i] else "#cc3b3b")
    for axis, prompt in zip(axes[0], prompts, strict=True):
        axis.set_title("\n".join(textwrap.wrap(prompt, 18)), fontsize=7)
    figure.tight_layout(pad=0.6)
    figure.savefig(path)


def _frame(axis, color: str) -> None:
    for spine in axis.spines.values():
        spine.set_color(color)
        spine.set_linewidth(2.5)


def training_curves(path: Path, history: History) -> None:
    """Writes reward and mean |f|^2 against the step, raw and smoothed."""
    figure = Figure(figsize=(9, 3.2), dpi=110)
    curves = {"reward": history.reward, "mean |f|²": history.penalty}
    axes = figure.subplots(1, len(curves))
    for axis, (name, values) in zip(axes, curves.items(), strict=True):
        axis.plot(values, color="#9db8d9", linewidth=0.8)
        axis.plot(_smooth(values), color="#1f4e8c", linewidth=1.8)
        axis.set_xlabel("step")
        axis.set_title(name, fontsize=10)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)


def _smooth(values: list[float]) -> list[float]:
    smoothed, total, weight = [], 0.0, 0.0
    for value in values:
        total = _SMOOTHING * total + value
        weight = _SMOOTHING * weight + 1
        smoothed.append(total / weight)
    return smoothed
