"""report.html of a training run, made from metrics.jsonl and the pictures of its evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..report import figures, page
from ..report.figures import GainPoint
from ..tracking import read
from .held_out import FOLDER, pictures_of
from .watch import hacking_warning

PAGE = "report.html"
"""Its name in the run's folder."""
_TITLES = {
    "loss": "loss",
    "reward": "reward, weighted sum",
    "penalty": "regulariser",
    "norm": "norm of the modulated noise",
    "grad_norm": "norm of the gradient",
    "lr": "learning rate",
    "skipped": "batches left out so far",
}
"""Of metrics whose name does not say what they are."""
_AFTER_REWARD = list(_TITLES).index("reward") + 0.5  # where the single rewards stand
_SPEED = "images per second"
_KL_TITLES = {
    "kl/l2": "1/2 |f|², the KL's stand-in in training",
    "kl/total": "KL, estimated",
    "kl/remainder_share": "share of the KL that 1/2 |f|² misses",
    "kl/lipschitz": "largest singular value of f's Jacobian",
}
_NO_CURVES = ("step", "kind", "images", "seconds")
_GAIN = "_gain"
_TOTAL = "evaluation/total"
Rows = Sequence[Mapping[str, Any]]


def write_run_report(folder: Path, title: str, summary: list[str]) -> Path:
    """Writes report.html into the run's folder: one page that needs no other file and no network.

    It holds what there is: a run without an evaluation, or of a single update, has one as well.

    Args:
        folder: of the run, with metrics.jsonl and the pictures in `evaluations`.
        title: of the page.
        summary: paragraphs of plain text.

    Returns:
        The page.

    Raises:
        FileNotFoundError: there is no metrics.jsonl.
        ValueError: metrics.jsonl is damaged; names the line.
    """
    rows = read(folder)
    training = [row for row in rows if row["kind"] == "train"]
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    parts: list[page.Part] = [page.Paragraph(text) for text in summary]
    if evaluations:
        parts += _evaluation_parts(evaluations)
        for row in dict.fromkeys((len(evaluations) - 1, 0)):  # the last and the first
            parts += _picture_parts(folder, evaluations[row]["step"])
    if curves := _curves(training):
        parts.append(page.Picture("Training", figures.as_png(figures.curves(curves))))
    file = folder / PAGE
    page.write_page(file, title, parts)
    return file


def _evaluation_parts(evaluations: Rows) -> list[page.Part]:
    last = evaluations[-1]
    scores = [name.removesuffix(_GAIN) for name in last if name.endswith(_GAIN)]
    parts = [
        *_warnings(evaluations, scores),
        page.Heading(f"Held-out prompts after {last['step']} updates"),
        _table(last, scores),
    ]
    if more := _more(last):
        parts.append(page.Paragraph(more))
    gains = {_label(name): _gain_points(evaluations, name) for name in scores}
    for name in _watched(scores):
        pair = [(_label(n), gains[_label(n)]) for n in (_TOTAL, name)]
        caption = f"Gain over the base: total (trained on) and {_label(name)}"
        parts.append(page.Picture(caption, figures.as_png(figures.two_gains(*pair))))
    if gains:
        caption = "Gain over the base on held-out prompts, with 95% confidence"
        parts.append(page.Picture(caption, figures.as_png(figures.gain_curves(gains))))
    if kl := _kl_curves(evaluations):
        caption = "How far the noise's distribution has moved"
        parts.append(page.Picture(caption, figures.as_png(figures.curves(kl))))
    return parts


def _kl_curves(evaluations: Rows) -> dict[str, dict[int, float]]:
    """Values by step, by title."""
    curves = {
        title: {row["step"]: row[name] for row in evaluations if name in row}
        for name, title in _KL_TITLES.items()
    }
    return {title: curve for title, curve in curves.items() if curve}


def _watched(scores: Sequence[str]) -> list[str]:
    return [name for name in scores if name.startswith("watched/")]


def _warnings(evaluations: Rows, scores: Sequence[str]) -> list[page.Part]:
    names = [name.removeprefix("watched/") for name in _watched(scores)]
    found = [hacking_warning(evaluations, watched=name) for name in names]
    return [page.Paragraph(text, warning=True) for text in found if text]


def _table(row: Mapping[str, Any], scores: Sequence[str]) -> page.Part:
    head = ["score", "base", "with adapter", "gain", "95% confidence", "wins"]
    lines = [
        [
            _label(name),
            f"{row[f'{name}_base']:.4g}",
            f"{row[name]:.4g}",
            f"{row[f'{name}_gain']:+.4g}",
            f"{row[f'{name}_gain_low']:+.4g} to {row[f'{name}_gain_high']:+.4g}",
            f"{row[f'{name}_win_rate']:.0%}",
        ]
        for name in scores
    ]
    return page.Table(head, lines, emphasised=_label(_TOTAL))


def _more(row: Mapping[str, Any]) -> str:
    """What the table does not hold, in sentences."""
    sentences = []
    if "evaluation/f_squared" in row:
        sentences.append(f"Mean f² of an element: {row['evaluation/f_squared']:.4g}.")
    if "evaluation/total_noise_prompt_replaced" in row:
        value = row["evaluation/total_noise_prompt_replaced"]
        sentences.append(
            f"Total where the hypernetwork gets the noise prompt instead of the image's own: "
            f"{value:.4g}."
        )
    return " ".join(sentences)


def _label(name: str) -> str:
    """How people call a score: hps; total; checker (not trained on)."""
    kind, _, short = name.partition("/")
    return f"{short} (not trained on)" if kind == "watched" else short


def _gain_points(evaluations: Rows, name: str) -> list[GainPoint]:
    gain = name + _GAIN
    return [
        GainPoint(row["step"], row[gain], row[f"{gain}_low"], row[f"{gain}_high"])
        for row in evaluations
        if gain in row
    ]


def _picture_parts(folder: Path, step: int) -> list[page.Part]:
    pictures = pictures_of(folder / FOLDER, step)
    return [page.Picture(f"{title}: after {step} updates", p) for title, p in pictures.items()]


def _curves(training: Rows) -> dict[str, dict[int, float]]:
    """Values by step, by title."""
    names = list(dict.fromkeys(name for row in training for name in row))
    places = {name: i for i, name in enumerate(_TITLES)}
    names.sort(key=lambda name: places.get(name, _AFTER_REWARD))
    curves = {
        _TITLES.get(name, name): {row["step"]: row[name] for row in training if name in row}
        for name in names
        if name not in _NO_CURVES
    }
    if speed := _speed(training):
        curves[_SPEED] = speed
    return curves


def _speed(training: Rows) -> dict[int, float]:
    """Images by the time since the line before, where each update has as many."""
    timed = [row for row in training if "images" in row and "seconds" in row]
    return {
        row["step"]: row["images"]
        * (row["step"] - before["step"])
        / (row["seconds"] - before["seconds"])
        for before, row in zip(timed, timed[1:], strict=False)
        if row["seconds"] > before["seconds"]
    }
