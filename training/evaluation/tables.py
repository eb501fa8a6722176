"""The tables of an evaluation, for its page and for a model card."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .method_table import BASE, METHODS, OURS, RENO
from .results import Interval, MethodResults, Report, ScoreName

UNKNOWN = "–"
_DIGITS: dict[ScoreName, int] = {"checker": 3, "reward": 2}


@dataclass(frozen=True)
class TextTable:
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
    """The cell, with what Markdown would take for more than text escaped."""
    return re.sub(r"[|`\[]", r"\\\g<0>", " ".join(cell.split()))


def main_table(report: Report, steps: int) -> TextTable:
    """Methods at one number of steps: the checker, in the form of the paper's table of GenEval, or
    the reward if there is no checker."""
    table, score = report.steps[steps], report.main_score
    categories = list(table[BASE].checker)
    head = ["method", *categories, "mean" if categories else "reward", "seconds per image"]
    rows = [
        [
            METHODS[name].title,
            *(_number(results.checker.get(category), 2) for category in categories),
            _mean(results, score),
            f"{results.seconds_per_image:.3g}",
        ]
        for name, results in table.items()
    ]
    return TextTable(_steps(steps), head, rows, METHODS[OURS].title)


def gains_table(report: Report, steps: int) -> TextTable:
    """What methods gain over base on the same images, and what they cost."""
    table = report.steps[steps]
    scores: list[ScoreName] = ["reward"]
    if report.main_score == "checker":
        scores.insert(0, "checker")
    has_reno = RENO in table
    head = ["method", *(f"{score} (95%)" for score in scores), "wins in reward"]
    head += ["share of ReNO's gain"] * has_reno
    head += ["passes (backward)", "images"]
    rows = [
        [
            METHODS[name].title,
            *(_gain(results, score) for score in scores),
            f"{results.win_rate:.0%}",
            *[_shares(results)] * has_reno,
            _passes(results),
            _count(results),
        ]
        for name, results in table.items()
        if name != BASE
    ]
    return TextTable(f"Gain over base, {_steps(steps).lower()}", head, rows, METHODS[OURS].title)


def steps_table(report: Report) -> TextTable:
    """The mean of the checker, or of the reward if there is none, by number of steps.

    If methods that search ran on some of the prompts, it also has base's mean on these.
    """
    score = report.main_score
    rows = []
    for name in METHODS:
        entries = [table.get(name) for table in report.steps.values()]
        if not any(entries):
            continue
        means = [UNKNOWN if results is None else _mean(results, score) for results in entries]
        rows.append([METHODS[name].title, *means])
        # Base's row comes first.
        if name == BASE and (on_searched := _base_of_searches(report, score)):
            title = "base, on the prompts of methods that search"
            rows.append([title, *(_number(mean, _DIGITS[score]) for mean in on_searched)])
    title = f"{'Checker mean' if score == 'checker' else 'Reward'} by generator steps"
    return TextTable(title, ["method", *map(str, report.steps)], rows, METHODS[OURS].title)


def _base_of_searches(report: Report, score: ScoreName) -> list[float | None]:
    """Means of base on the prompts of the methods that search, by number of steps; empty if these
    are all prompts."""
    means: list[float | None] = []
    fewer = False
    for table in report.steps.values():
        searching = next((table[name] for name in table if METHODS[name].searches), None)
        numbers = None if searching is None else searching.score(score)
        means.append(None if numbers is None else numbers.mean - numbers.gain)
        fewer |= searching is not None and searching.prompts < table[BASE].prompts
    return means if fewer else []


def rewards_table(report: Report, steps: int) -> TextTable:
    """Every reward of every method, with its gain over base on the same noise."""
    rows = [
        [
            METHODS[name].title,
            reward,
            _with_interval(numbers.mean, numbers.ci, 3),
            UNKNOWN if name == BASE else _with_interval(numbers.gain, numbers.gain_ci, 3),
            UNKNOWN if name == BASE else f"{numbers.win_rate:.0%}",
        ]
        for name, results in report.steps[steps].items()
        for reward, numbers in results.rewards.items()
    ]
    head = ["method", "reward", "mean (95%)", "gain over base (95%)", "win rate"]
    return TextTable(f"Rewards, {_steps(steps).lower()}", head, rows, METHODS[OURS].title)


def distribution_table(report: Report) -> TextTable:
    """Whether the distribution stayed the same: diversity, |f|, KL."""
    rows = [
        [
            METHODS[name].title,
            str(steps),
            _number(results.diversity, 4),
            _number(results.diversity_base, 4),
            _number(results.pixel_diversity, 4),
            _number(results.pixel_diversity_base, 4),
            _number(results.f_squared, 4),
            _number(results.kl, 2),
        ]
        for steps, table in report.steps.items()
        for name, results in table.items()
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
    return TextTable("Did the distribution stay the same?", head, rows)


def runs_table(report: Report, steps: int) -> TextTable:
    """Means of each adapter, for methods that ran with several from different training seeds."""
    rows = [
        [
            METHODS[name].title,
            str(number),
            _number(run.checker_mean, 3),
            _number(run.reward_mean, 2),
        ]
        for name, results in report.steps[steps].items()
        if len(results.runs) > 1
        for number, run in enumerate(results.runs, 1)
    ]
    head = ["method", "training run", "checker mean", "reward"]
    return TextTable(f"Training runs, {_steps(steps).lower()}", head, rows)


def ablation_table(report: Report) -> TextTable:
    """The adapters of the ablation beside base and HyperNoise."""
    table = report.first_table
    entries = {METHODS[name].title: table[name] for name in (BASE, OURS) if name in table}
    entries |= report.ablation
    rows = [
        [
            name,
            _number(results.checker_mean, 3),
            _with_interval(results.reward_mean, results.reward_ci, 2),
            _number(results.diversity, 4),
            _number(results.pixel_diversity, 4),
            _number(results.f_squared, 4),
            _number(results.kl, 2),
        ]
        for name, results in entries.items()
    ]
    head = ["adapter", "checker mean", "reward (95%)", "diversity"]
    return TextTable("Ablation", [*head, "diversity (pixels)", "mean f²", "KL, nats"], rows)


def markdown(report: Report) -> str:
    """The main tables, for a model card."""
    steps = report.fewest_steps
    tables = [main_table(report, steps), gains_table(report, steps)]
    tables += [steps_table(report)] if len(report.steps) > 1 else []
    return "\n\n".join(f"{table.title}:\n\n{table.markdown()}" for table in tables) + "\n"


def _steps(steps: int) -> str:
    return "One generator step" if steps == 1 else f"{steps} generator steps"


def _count(results: MethodResults) -> str:
    runs = len(results.runs)
    return f"{results.images}" + (f" of {runs} runs" if runs > 1 else "")


def _passes(results: MethodResults) -> str:
    backward = results.backward_passes
    total = f"{results.network_evaluations:.4g}"
    return f"{total} ({backward:.4g})" if backward else total


def _shares(results: MethodResults) -> str:
    """Of the reward's gain and, if there is a checker, of the checker's."""
    shares = results.recovered_share
    named = {"reward": shares.reward, "checker": shares.checker_mean}
    texts = [f"{share:.0%} {name}" for name, share in named.items() if share is not None]
    return ", ".join(texts) or UNKNOWN


def _mean(results: MethodResults, name: ScoreName) -> str:
    score = results.score(name)
    return _number(None if score is None else score.mean, _DIGITS[name])


def _gain(results: MethodResults, name: ScoreName) -> str:
    """Over base on the same images, with its sign."""
    if (score := results.score(name)) is None:
        return UNKNOWN
    digits = _DIGITS[name]
    text = f"{score.gain:+.{digits}f}"
    if score.gain_ci is None:
        return text
    low, high = score.gain_ci
    return f"{text} ({low:+.{digits}f} to {high:+.{digits}f})"


def _with_interval(value: float, interval: Interval | None, digits: int) -> str:
    if interval is None:
        return f"{value:.{digits}f}"
    low, high = interval
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _number(value: float | None, digits: int) -> str:
    return UNKNOWN if value is None else f"{value:.{digits}f}"
