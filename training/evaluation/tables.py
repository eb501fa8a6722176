"""The tables of an evaluation, from report.json: for its page and for a model card."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .method_table import BASE, METHODS, OURS, RENO

Report = Mapping[str, Any]
UNKNOWN = "–"
_DIGITS = {"checker": 3, "reward": 2}


@dataclass(frozen=True)
class Table:
    """A table of texts."""

    title: str
    head: list[str]
    rows: list[list[str]]
    emphasised: str = ""
    """First cell of the row that stands out."""

    def markdown(self) -> str:
        rows = [[_escaped(cell) for cell in row] for row in map(self._marked, self.rows)]
        lines = [[_escaped(cell) for cell in self.head], ["---"] * len(self.head), *rows]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

    def _marked(self, row: Sequence[str]) -> list[str]:
        if row[0] != self.emphasised:
            return list(row)
        return [f"**{cell}**" if cell != UNKNOWN else cell for cell in row]


def _escaped(cell: str) -> str:
    """The cell, with what Markdown would take for more than text."""
    return re.sub(r"[|`\[]", r"\\\g<0>", " ".join(cell.split()))


def fewest_steps(report: Report) -> str:
    """The key of `steps` with the fewest."""
    return min(report["steps"], key=int)


def main_table(report: Report, steps: str) -> Table:
    """Methods at one number of steps: the checker, in the form of the paper's table of GenEval, or
    the reward where there is no checker."""
    table = report["steps"][steps]
    categories = list(table[BASE]["checker"])
    head = ["method", *categories, "mean" if categories else "reward", "seconds per image"]
    score = _score(report)
    rows = [
        [
            METHODS[name].title,
            *(_number(entry["checker"].get(category), 2) for category in categories),
            _number(entry[f"{score}_mean"], _DIGITS[score]),
            f"{entry['seconds_per_image']:.3g}",
        ]
        for name, entry in table.items()
    ]
    return Table(_steps(steps), head, rows, METHODS[OURS].title)


def gains_table(report: Report, steps: str) -> Table:
    """What methods gain over base on the same images, and what they cost."""
    table = report["steps"][steps]
    scores = ("checker", "reward") if _score(report) == "checker" else ("reward",)
    has_reno = RENO in table
    head = ["method", *(f"{score} (95%)" for score in scores), "wins in reward"]
    head += ["share of ReNO's gain"] * has_reno
    head += ["passes (backward)", "images"]
    rows = [
        [
            METHODS[name].title,
            *(_gain(entry, score) for score in scores),
            f"{entry['win_rate']:.0%}",
            *[_shares(entry)] * has_reno,
            _passes(entry),
            _count(entry),
        ]
        for name, entry in table.items()
        if name != BASE
    ]
    return Table(f"Gain over base, {_steps(steps).lower()}", head, rows, METHODS[OURS].title)


def steps_table(report: Report) -> Table:
    """The mean of the checker, or of the reward where there is none, by number of steps.

    Where methods that search ran on some of the prompts, base's mean on these is there too.
    """
    score = _score(report)
    names = [name for name in METHODS if any(name in table for table in report["steps"].values())]
    rows = []
    for name in names:
        entries = [table.get(name) for table in report["steps"].values()]
        means = [None if entry is None else entry[f"{score}_mean"] for entry in entries]
        rows.append([METHODS[name].title, *(_number(mean, _DIGITS[score]) for mean in means)])
        # Base's row comes first.
        if name == BASE and (means := _base_of_searches(report, score)):
            title = "base, on the prompts of methods that search"
            rows.append([title, *(_number(mean, _DIGITS[score]) for mean in means)])
    title = f"{'Checker mean' if score == 'checker' else 'Reward'} by generator steps"
    return Table(title, ["method", *report["steps"]], rows, METHODS[OURS].title)


def _base_of_searches(report: Report, score: str) -> list[float | None]:
    """Means of base on the prompts of the methods that search, by number of steps; empty where
    these are all prompts."""
    means: list[float | None] = []
    fewer = False
    for table in report["steps"].values():
        entry = next((table[name] for name in table if METHODS[name].searches), None)
        means.append(None if entry is None else entry[f"{score}_mean"] - entry[f"{score}_gain"])
        fewer |= entry is not None and entry["prompts"] < table[BASE]["prompts"]
    return means if fewer else []


def rewards_table(report: Report, steps: str) -> Table:
    """Every reward of every method, with its gain over base on the same noise."""
    rows = [
        [
            METHODS[name].title,
            reward,
            _with_interval(numbers["mean"], numbers["ci"], 3),
            UNKNOWN if name == BASE else _with_interval(numbers["gain"], numbers["gain_ci"], 3),
            UNKNOWN if name == BASE else f"{numbers['win_rate']:.0%}",
        ]
        for name, entry in report["steps"][steps].items()
        for reward, numbers in entry["rewards"].items()
    ]
    head = ["method", "reward", "mean (95%)", "gain over base (95%)", "win rate"]
    return Table(f"Rewards, {_steps(steps).lower()}", head, rows, METHODS[OURS].title)


def distribution_table(report: Report) -> Table:
    """Whether the distribution stayed: diversity, |f|, KL."""
    rows = [
        [
            METHODS[name].title,
            steps,
            _number(entry["diversity"], 4),
            _number(entry["diversity_base"], 4),
            _number(entry["pixel_diversity"], 4),
            _number(entry["pixel_diversity_base"], 4),
            _number(entry["f_squared"], 4),
            _number(entry["kl"], 2),
        ]
        for steps, table in report["steps"].items()
        for name, entry in table.items()
    ]
    head = [
        "method",
        "steps",
        "diversity",
        "base's",
        "diversity (pixels)",
        "base's",
        "mean f²",
        "KL, nats",
    ]
    return Table("Did the distribution stay?", head, rows)


def runs_table(report: Report, steps: str) -> Table:
    """Means of each adapter, where methods were run with several that differ by training seed."""
    rows = [
        [
            METHODS[name].title,
            str(number),
            _number(run.get("checker_mean"), 3),
            _number(run["reward_mean"], 2),
        ]
        for name, entry in report["steps"][steps].items()
        if len(entry["runs"]) > 1
        for number, run in enumerate(entry["runs"], 1)
    ]
    head = ["method", "training run", "checker mean", "reward"]
    return Table(f"Training runs, {_steps(steps).lower()}", head, rows)


def ablation_table(report: Report) -> Table:
    """The adapters of the ablation beside base and HyperNoise."""
    table = report["steps"][fewest_steps(report)]
    entries = {METHODS[name].title: table[name] for name in (BASE, OURS) if name in table}
    entries |= report["ablation"]
    rows = [
        [
            name,
            _number(entry["checker_mean"], 3),
            _with_interval(entry["reward_mean"], entry["reward_ci"], 2),
            _number(entry["diversity"], 4),
            _number(entry["pixel_diversity"], 4),
            _number(entry["f_squared"], 4),
            _number(entry["kl"], 2),
        ]
        for name, entry in entries.items()
    ]
    head = ["adapter", "checker mean", "reward (95%)", "diversity"]
    return Table("Ablation", [*head, "diversity (pixels)", "mean f²", "KL, nats"], rows)


def markdown(report: Report) -> str:
    """The main tables for a model card."""
    steps = fewest_steps(report)
    tables = [main_table(report, steps), gains_table(report, steps)]
    tables += [steps_table(report)] if len(report["steps"]) > 1 else []
    return "\n\n".join(f"{table.title}:\n\n{table.markdown()}" for table in tables) + "\n"


def _score(report: Report) -> str:
    """What the first table is about."""
    base = report["steps"][fewest_steps(report)][BASE]
    return "reward" if base["checker_mean"] is None else "checker"


def _steps(steps: str) -> str:
    return "One generator step" if steps == "1" else f"{steps} generator steps"


def _count(entry: Mapping[str, Any]) -> str:
    runs = len(entry["runs"])
    return f"{entry['images']}" + (f" of {runs} runs" if runs > 1 else "")


def _passes(entry: Mapping[str, Any]) -> str:
    backward = entry["backward_passes"]
    total = f"{entry['network_evaluations']:.4g}"
    return f"{total} ({backward:.4g})" if backward else total


def _shares(entry: Mapping[str, Any]) -> str:
    """Of the reward's gain and, where there is a checker, of the checker's."""
    shares = entry["recovered_share"]
    texts = []
    for key, name in (("reward", "reward"), ("checker_mean", "checker")):
        if shares[key] is not None:
            texts.append(f"{shares[key]:.0%} {name}")
    return ", ".join(texts) or UNKNOWN


def _with_interval(value: float, interval: Sequence[float] | None, digits: int) -> str:
    if interval is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})"


def _gain(entry: Mapping[str, Any], score: str) -> str:
    """Over base on the same images, with its sign."""
    gain, interval = entry[f"{score}_gain"], entry[f"{score}_gain_ci"]
    digits = _DIGITS[score]
    ends = "" if interval is None else f" ({interval[0]:+.{digits}f} to {interval[1]:+.{digits}f})"
    return f"{gain:+.{digits}f}{ends}"


def _number(value: float | None, digits: int) -> str:
    return UNKNOWN if value is None else f"{value:.{digits}f}"
