"""What a gain in the reward costs elsewhere: adapters of an ablation as stages of paths from base.

Names of an ablation give the path and the stage: `finetune_100`, `finetune_200` are two stages of
the path `finetune`, in the order in which they were named.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .method_table import BASE, FINETUNE, OURS
from .results import AblationResults, MethodResults, Table

COSTS = {
    "checker_mean": "checker mean",
    "diversity": "diversity",
    "pixel_diversity": "diversity (pixels)",
}
"""Titles of what a reward may cost, by the field of `MethodResults`."""


class Stage(NamedTuple):
    """A point of a path."""

    label: str
    results: MethodResults | AblationResults


def paths(table: Table, ablation: Mapping[str, AblationResults]) -> dict[str, list[Stage]]:
    """The stages of each path, base first, by the path's name.

    Args:
        table: methods at the fewest steps.
        ablation: of the report, by name.
    """
    found: dict[str, list[Stage]] = {}
    for name, results in ablation.items():
        path, _, label = name.rpartition("_")
        start = [Stage(BASE, table[BASE])]
        found.setdefault(path or name, start).append(Stage(label, results))
    return found


def at_our_reward(
    table: Table, ablation: Mapping[str, AblationResults]
) -> dict[str, dict[str, float] | None]:
    """What each path of fine-tuned generators has left where its reward is HyperNoise's.

    Between stages it is interpolated linearly, where the path first crosses that reward; None if it
    never does.

    Args:
        table, ablation: as of `paths`.
    """
    if OURS not in table:
        return {}
    return {
        path: _first_crossing(stages, table[OURS].reward_mean)
        for path, stages in paths(table, ablation).items()
        if all(stage.results.kind == FINETUNE for stage in stages[1:])
    }


def _first_crossing(stages: list[Stage], reward: float) -> dict[str, float] | None:
    for (_, before), (_, after) in zip(stages, stages[1:], strict=False):
        low, high = before.reward_mean, after.reward_mean
        if low < reward <= high:
            share = (reward - low) / (high - low)
            ends = {name: (getattr(before, name), getattr(after, name)) for name in COSTS}
            return {
                name: start + share * (end - start)
                for name, (start, end) in ends.items()
                if start is not None
            }
    return None
