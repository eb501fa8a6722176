"""What a gain in the reward costs elsewhere: adapters of an ablation as stages of paths from base.

Names of an ablation say the path and the stage: `finetune_100`, `finetune_200` are two stages of
the path `finetune`, in the order in which they were named.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .method_table import BASE, FINETUNE, OURS

Report = Mapping[str, Any]

COSTS = {
    "checker_mean": "checker mean",
    "diversity": "diversity",
    "pixel_diversity": "diversity (pixels)",
}
"""Titles of what a reward may cost, by their keys in the report's entries."""


class Stage(NamedTuple):
    """A point of a path."""

    label: str
    entry: Mapping[str, Any]


def paths(table: Report, ablation: Report) -> dict[str, list[Stage]]:
    """The stages of each path, base first, by the path's name.

    Args:
        table: methods at the fewest steps.
        ablation: of the report, by name.
    """
    found: dict[str, list[Stage]] = {}
    for name, entry in ablation.items():
        path, _, label = name.rpartition("_")
        start = [Stage(BASE, table[BASE])]
        found.setdefault(path or name, start).append(Stage(label, entry))
    return found


def at_our_reward(table: Report, ablation: Report) -> dict[str, dict[str, float] | None]:
    """What each path of fine-tuned generators has left where its reward is HyperNoise's.

    Between stages it is interpolated linearly, where the path first crosses that reward; None where
    it never does.

    Args:
        table, ablation: as of `paths`.
    """
    if OURS not in table:
        return {}
    reward = table[OURS]["reward_mean"]
    return {
        name: _first_crossing(stages, reward)
        for name, stages in paths(table, ablation).items()
        if all(stage.entry["kind"] == FINETUNE for stage in stages[1:])
    }


def _first_crossing(stages: list[Stage], reward: float) -> dict[str, float] | None:
    for (_, before), (_, after) in zip(stages, stages[1:], strict=False):
        low, high = before["reward_mean"], after["reward_mean"]
        if low < reward <= high:
            share = (reward - low) / (high - low)
            return {
                name: before[name] + share * (after[name] - before[name])
                for name in COSTS
                if before[name] is not None
            }
    return None
