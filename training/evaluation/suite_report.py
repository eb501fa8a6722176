"""report.json, report.html and report.md of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ...hypernoise_core.atomic_file import write_atomically
from ...hypernoise_core.text import printable
from ..report import figures, page
from ..report.figures import GainPoint, Point
from ..tiny_world.checker import is_correct
from . import tables
from .adapters import ABLATION
from .jobs import SHOWN, Job, read_job_tensors
from .method_table import BASE, METHODS, OURS
from .report_file import write_report_file
from .results import MethodResults, Report, ScoreName
from .suite import Suite
from .summary import summarise
from .trade_offs import COSTS, paths

_PANELS: dict[ScoreName, str] = {"checker": "the checker", "reward": "the reward"}
"""Titles of plots by score."""


def write_report(suite: Suite) -> Path:
    """Writes the report of an evaluation whose jobs are all done; returns the page.

    Raises:
        ValueError: a job is missing or damaged.
    """
    report = summarise(suite)
    out = suite.config.out
    write_report_file(out / "report.json", report)
    write_atomically(out / "report.md", printable(tables.markdown(report)).encode())
    parts: list[page.Part] = [page.Paragraph(text) for text in _summary(report)]
    parts += [part for table in _tables(report) for part in _table(table)]
    pictures = {}
    for title, (name, figure) in _plots(report).items():
        pictures[title] = out / f"{name}.png"
        write_atomically(pictures[title], figures.as_png(figure))
    pictures |= _grids(suite)
    parts += [page.Picture(title, file) for title, file in pictures.items()]
    file = out / "report.html"
    page.write_page(file, f"Evaluation of {suite.config.model}", parts)
    return file


def _table(table: tables.TextTable) -> list[page.Part]:
    return [page.Heading(table.title), page.Table(table.head, table.rows, table.emphasised)]


def _tables(report: Report) -> Iterator[tables.TextTable]:
    fewest = report.fewest_steps
    yield tables.main_table(report, fewest)
    yield tables.gains_table(report, fewest)
    if len(report.steps) > 1:
        yield tables.steps_table(report)
    yield tables.rewards_table(report, fewest)
    if (runs := tables.runs_table(report, fewest)).rows:
        yield runs
    yield tables.distribution_table(report)
    if report.ablation:
        yield tables.ablation_table(report)
    for steps in report.steps:
        if steps != fewest:
            yield tables.main_table(report, steps)
            yield tables.gains_table(report, steps)


def _summary(report: Report) -> list[str]:
    """What the reader has to know about the numbers."""
    settings = report.settings
    rewards = ", ".join(f"{weight:g} x {name}" for name, weight in settings.rewards.items())
    searches = any(METHODS[name].searches for table in report.steps.values() for name in table)
    fewer = (
        f"Methods that generate several images per prompt ran on {settings.search_prompts} of "
        f"them, and on {settings.multi_step_search_prompts} at more than the fewest steps. "
    )
    texts = [
        f"{settings.prompts} prompts, {settings.seeds} noises each. {fewer * searches}All "
        f"methods use the same noises; gains, win rates and shares compare the same prompts and "
        f"noises. Reward: {rewards}.",
        "Intervals are 95% bootstrap intervals over prompts. Passes count images through the "
        "generator's network, used as generator or as hypernetwork; a backward pass costs about "
        f"two forward passes. Seconds are those of the median batch of {settings.batch_size}, from "
        f"the fastest of the seeds, on {settings.device} with {settings.processes} process(es), "
        f"without encoding prompts.",
        f"Diversity: {settings.diversity}, averaged over pairs of images of one prompt, and the "
        "root-mean-square distance of downscaled copies. A distance in a reward's features falls "
        "whenever that reward rises. KL is the divergence of the noise's distribution from "
        "N(0, 1): estimated for HyperNoise, log N - (N - 1) / N for the best of N.",
    ]
    if (share := report.recovered_share) is not None:
        named = {"the reward": share.reward, "the checker": share.checker_mean}
        parts = [
            f"{of:.0%} of its gain on {title}" for title, of in named.items() if of is not None
        ]
        if parts:
            texts.insert(0, f"HyperNoise recovers of ReNO (50 iterations): {', '.join(parts)}.")
    texts += [_at_our_reward(report, *of) for of in report.at_our_reward.items()]
    return texts


def _at_our_reward(report: Report, path: str, left: Mapping[str, float] | None) -> str:
    """A sentence on a path of fine-tuned generators."""
    ours, base = report.first_table[OURS], report.first_table[BASE]
    reward = f"HyperNoise's reward of {ours.reward_mean:.2f}"
    if left is None:
        return f"The generator fine-tuned along the path {path} never reaches {reward}."
    parts = [
        f"{COSTS[name]} {value:.3f} (HyperNoise {getattr(ours, name):.3f}, base "
        f"{getattr(base, name):.3f})"
        for name, value in left.items()
    ]
    return f"Fine-tuned along the path {path} to {reward}, the generator has {'; '.join(parts)}."


def _plots(report: Report) -> dict[str, tuple[str, Figure]]:
    """Names and figures by title."""
    base = report.first_table[BASE]
    names = [name for name in _PANELS if base.score(name) is not None]
    costs = {f"gain in {_PANELS[name]}": _costs(report, name) for name in names}
    plots = {
        "Gain over base at the fewest steps, against time (labels: steps)": (
            "gain_by_time",
            figures.paths(costs, "seconds per image", log_x=True),
        )
    }
    by_steps = {_PANELS[name]: _gains(report, name) for name in names}
    if all(by_steps.values()):
        figure = figures.gains_by_steps(by_steps)
        plots["Gain over base at the same number of steps"] = ("gain_by_steps", figure)
    if report.ablation:
        titles = {name: title for name, title in COSTS.items() if getattr(base, name) is not None}
        panels = {title: _trade_offs(report, name) for name, title in titles.items()}
        if panels:
            figure = figures.paths(panels, "reward")
            plots["What the reward costs: paths of the ablation"] = ("trade_offs", figure)
    return plots


def _costs(report: Report, name: ScoreName) -> dict[str, list[Point]]:
    start = report.first_table[BASE].score(name).mean
    points: dict[str, list[Point]] = {}
    for steps, table in report.steps.items():
        # A method that ran on some of the prompts has its gain from these, and base's from all.
        offset = table[BASE].score(name).mean - start
        for method, results in table.items():
            gain = results.score(name).gain + offset
            point = Point(str(steps), results.seconds_per_image, gain)
            points.setdefault(METHODS[method].title, []).append(point)
    return points


def _trade_offs(report: Report, cost: str) -> dict[str, list[Point]]:
    """Another score against the reward, along each path of the ablation.

    Args:
        cost: a key of `COSTS`.
    """
    table = report.first_table

    def point(label: str, results: MethodResults) -> Point:
        return Point(label, results.reward_mean, getattr(results, cost))

    points = {
        path: [point(label, results) for label, results in stages]
        for path, stages in paths(table, report.ablation).items()
    }
    if OURS in table:
        points[METHODS[OURS].title] = [point(BASE, table[BASE]), point("", table[OURS])]
    return points


def _gains(report: Report, name: ScoreName) -> dict[str, list[GainPoint]]:
    points: dict[str, list[GainPoint]] = {}
    for steps, table in report.steps.items():
        for method, results in table.items():
            score = results.score(name)
            low, high = score.gain_ci or (score.gain, score.gain)
            if method != BASE:
                point = GainPoint(steps, score.gain, low, high)
                points.setdefault(METHODS[method].title, []).append(point)
    return points


def _grids(suite: Suite) -> dict[str, Path]:
    """Pictures by title: a row has one prompt and one noise, a column one method."""
    fewest = min(suite.config.chosen_steps)
    methods: dict[str, list[Job]] = {}
    by_steps: dict[str, list[Job]] = {}
    ablation: dict[str, list[Job]] = {}
    for job in filter(suite.is_shown, suite.jobs):
        name = job.method.removeprefix(ABLATION)
        if job.method in METHODS:
            name = METHODS[job.method].title
            if job.steps == fewest:
                methods.setdefault(name, []).append(job)
        if job.method in (BASE, OURS):
            by_steps.setdefault(f"{name}, {job.steps}", []).append(job)
        if job.steps == fewest and (job.method == BASE or job.method not in METHODS):
            ablation.setdefault(name, []).append(job)
    grids = {f"Methods at {fewest} step(s): a row has one noise": ("methods.jpg", methods)}
    if len(suite.config.chosen_steps) > 1:
        grids["By generator steps: a row has one noise"] = ("steps.jpg", by_steps)
    if len(ablation) > 1:
        grids["The ablation: a row has one noise"] = ("ablation.jpg", ablation)
    files = {}
    for title, (name, columns) in grids.items():
        files[title] = suite.config.out / name
        _grid(suite, files[title], columns)
    return files


def _grid(suite: Suite, path: Path, columns: Mapping[str, Sequence[Job]]) -> None:
    """Writes a grid; a column's images may come from several jobs."""
    out = suite.config.out
    parts = [[read_job_tensors(job.file(out))[SHOWN] for job in jobs] for jobs in columns.values()]
    images: Tensor = torch.stack([torch.cat(of) for of in parts], dim=1)
    # (prompts, methods, 3, H, W)
    rows, marks = {}, {}
    for number, of_prompt in zip(suite.shown, images, strict=True):
        name = f"{suite.prompts[number]} (noise {number})"  # a prompt may be there several times
        rows[name] = of_prompt
        if suite.captions is not None:
            caption = suite.captions[number]
            marks[name] = [is_correct(image, caption) for image in of_prompt]
    dpi = min(190, max(80, round(images.shape[-1] / 1.35)))
    figures.side_by_side(path, list(columns), rows, marks or None, dpi=dpi)
