"""report.json, report.html and report.md of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
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
from .suite import Suite
from .summary import summarise
from .tables import fewest_steps
from .trade_offs import COSTS, paths

_PANELS = {"checker": "the checker", "reward": "the reward"}
"""Titles of plots by what the report's keys start with."""


def write_report(suite: Suite) -> Path:
    """Writes the report of an evaluation whose jobs are all done; returns the page.

    Raises:
        ValueError: a job is missing or damaged.
    """
    numbers = summarise(suite)
    out = suite.config.out
    page.write_json(out / "report.json", numbers)
    write_atomically(out / "report.md", printable(tables.markdown(numbers)).encode())
    parts = [page.paragraph(text) for text in _summary(numbers)]
    parts += [part for table in _tables(numbers) for part in _table(table)]
    pictures = {}
    for title, (name, figure) in _plots(numbers).items():
        pictures[title] = out / f"{name}.png"
        write_atomically(pictures[title], figures.as_png(figure))
    pictures |= _grids(suite)
    parts += [page.picture(title, file) for title, file in pictures.items()]
    file = out / "report.html"
    page.write_page(file, f"Evaluation of {suite.config.model}", parts)
    return file


def _table(table: tables.Table) -> list[str]:
    return [page.heading(table.title), page.table(table.head, table.rows, table.emphasised)]


def _tables(numbers: Mapping[str, Any]) -> Iterator[tables.Table]:
    fewest = fewest_steps(numbers)
    yield tables.main_table(numbers, fewest)
    yield tables.gains_table(numbers, fewest)
    if len(numbers["steps"]) > 1:
        yield tables.steps_table(numbers)
    yield tables.rewards_table(numbers, fewest)
    if (runs := tables.runs_table(numbers, fewest)).rows:
        yield runs
    yield tables.distribution_table(numbers)
    if numbers["ablation"]:
        yield tables.ablation_table(numbers)
    for steps in numbers["steps"]:
        if steps != fewest:
            yield tables.main_table(numbers, steps)
            yield tables.gains_table(numbers, steps)


def _summary(numbers: Mapping[str, Any]) -> list[str]:
    """What the reader has to know about the numbers, in sentences."""
    settings = numbers["settings"]
    rewards = ", ".join(f"{weight:g} x {name}" for name, weight in settings["rewards"].items())
    searches = any(METHODS[name].searches for table in numbers["steps"].values() for name in table)
    fewer = (
        f"Methods that make several images of a prompt ran on {settings['search_prompts']} of "
        f"them, at more than the fewest steps on {settings['multi_step_search_prompts']}. "
    )
    texts = [
        f"{settings['prompts']} prompts, {settings['seeds']} noises each. {fewer * searches}All "
        f"methods have the same noises; gains, win rates and shares compare the same prompts and "
        f"noises. Reward: {rewards}.",
        "Intervals are 95% bootstrap intervals over prompts. Passes are images through the "
        "generator's network, as generator or as hypernetwork; a backward pass costs about two "
        "forward passes. Seconds are those of the median batch of "
        f"{settings['batch_size']}, from the fastest of the seeds, on {settings['device']} with "
        f"{settings['processes']} process(es), without encoding prompts.",
        f"Diversity: {settings['diversity']}, mean over pairs of images of one prompt, and the "
        "root-mean-square distance of their small copies. A distance in a reward's features falls "
        "wherever that reward rises. KL is that of the noise's distribution from N(0, 1): "
        "estimated for HyperNoise, log N - (N - 1) / N for the best of N.",
    ]
    if (share := numbers["recovered_share"]) is not None:
        parts = [
            f"{share[key]:.0%} of its gain on {title}"
            for key, title in (("reward", "the reward"), ("checker_mean", "the checker"))
            if share[key] is not None
        ]
        if parts:
            texts.insert(0, f"HyperNoise recovers of ReNO (50 iterations): {', '.join(parts)}.")
    texts += [_at_our_reward(numbers, *of) for of in numbers["at_our_reward"].items()]
    return texts


def _at_our_reward(numbers: Mapping[str, Any], path: str, left: Mapping[str, float] | None) -> str:
    """A sentence on a path of fine-tuned generators."""
    table = numbers["steps"][fewest_steps(numbers)]
    reward = f"HyperNoise's reward of {table[OURS]['reward_mean']:.2f}"
    if left is None:
        return f"The generator fine-tuned along the path {path} never has {reward}."
    parts = [
        f"{COSTS[name]} {value:.3f} (HyperNoise {table[OURS][name]:.3f}, base "
        f"{table[BASE][name]:.3f})"
        for name, value in left.items()
    ]
    return f"Fine-tuned along the path {path} to {reward}, the generator has {'; '.join(parts)}."


def _plots(numbers: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Names and figures by title."""
    base = numbers["steps"][fewest_steps(numbers)][BASE]
    names = [name for name in _PANELS if base[f"{name}_mean"] is not None]
    costs = {f"gain in {_PANELS[name]}": _costs(numbers, name) for name in names}
    plots = {
        "Gain over base at the fewest steps, against time (labels: steps)": (
            "gain_by_time",
            figures.paths(costs, "seconds per image", log_x=True),
        )
    }
    by_steps = {_PANELS[name]: _gains(numbers, name) for name in names}
    if all(by_steps.values()):
        figure = figures.gains_by_steps(by_steps)
        plots["Gain over base at the same number of steps"] = ("gain_by_steps", figure)
    if numbers["ablation"]:
        titles = {name: title for name, title in COSTS.items() if base[name] is not None}
        panels = {title: _trade_offs(numbers, name) for name, title in titles.items()}
        if panels:
            figure = figures.paths(panels, "reward")
            plots["What the reward costs: paths of the ablation"] = ("trade_offs", figure)
    return plots


def _costs(numbers: Mapping[str, Any], name: str) -> dict[str, list[Point]]:
    start = numbers["steps"][fewest_steps(numbers)][BASE][f"{name}_mean"]
    points: dict[str, list[Point]] = {}
    for steps, table in numbers["steps"].items():
        # A method that ran on some of the prompts has its gain from these, and base's from all.
        offset = table[BASE][f"{name}_mean"] - start
        for method, entry in table.items():
            point = Point(steps, entry["seconds_per_image"], entry[f"{name}_gain"] + offset)
            points.setdefault(METHODS[method].title, []).append(point)
    return points


def _trade_offs(numbers: Mapping[str, Any], name: str) -> dict[str, list[Point]]:
    """Another score against the reward, along each path of the ablation."""
    table = numbers["steps"][fewest_steps(numbers)]
    points = {
        path: [Point(label, entry["reward_mean"], entry[name]) for label, entry in stages]
        for path, stages in paths(table, numbers["ablation"]).items()
    }
    if OURS in table:
        ends = ((BASE, table[BASE]), ("", table[OURS]))
        ours = [Point(label, entry["reward_mean"], entry[name]) for label, entry in ends]
        points[METHODS[OURS].title] = ours
    return points


def _gains(numbers: Mapping[str, Any], name: str) -> dict[str, list[GainPoint]]:
    points: dict[str, list[GainPoint]] = {}
    for steps, table in numbers["steps"].items():
        for method, entry in table.items():
            gain = entry[f"{name}_gain"]
            low, high = entry[f"{name}_gain_ci"] or (gain, gain)
            if method != BASE:
                point = GainPoint(int(steps), gain, low, high)
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
    """Writes a grid; a column's images lie in one or several parts."""
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
