"""The results of an evaluation: the fields of these classes are the keys of report.json.

A field with a default is left out of the file while it has that value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .method_table import BASE, METHODS

Interval = tuple[float, float]
"""Both ends of a 95% confidence interval."""
ScoreName = Literal["checker", "reward"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """A mean, and the gain over base on the same prompts and noises."""

    mean: float
    ci: Interval | None
    gain: float
    gain_ci: Interval | None


@dataclass(frozen=True, kw_only=True)
class RewardScore(Score):
    """A reward's."""

    win_rate: float
    """Share of images that score higher than base's from the same noise; ties count half."""


@dataclass(frozen=True, kw_only=True)
class RunMeans:
    """Means of one of several adapters."""

    reward_mean: float
    checker_mean: float | None = None


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Shares of ReNO's gain, on the prompts and noises that ReNO ran on."""

    reward: float | None
    checker_mean: float | None


@dataclass(frozen=True, kw_only=True)
class RecoveredShare(Shares):
    """HyperNoise's, at the fewest steps at which ReNO ran."""

    steps: int


@dataclass(frozen=True, kw_only=True)
class MethodResults:
    """The numbers of one method at one number of steps; None: unknown."""

    images: int
    prompts: int
    runs: list[RunMeans]
    """Of each of several adapters."""

    checker_mean: float | None
    """Mean of the categories."""
    checker_ci: Interval | None
    checker_gain: float | None
    checker_gain_ci: Interval | None
    checker: dict[str, float]
    """By category; empty without captions of the tiny world."""

    reward_mean: float
    """Of the weighted sum of the rewards."""
    reward_ci: Interval | None
    reward_gain: float
    reward_gain_ci: Interval | None
    win_rate: float
    rewards: dict[str, RewardScore]
    """By name."""

    seconds_per_image: float
    network_evaluations: float
    """Forward and backward passes, per image."""
    forward_passes: float
    backward_passes: float

    diversity: float | None
    """LPIPS, or else of image features."""
    pixel_diversity: float | None
    diversity_base: float | None
    """Base's on the prompts of this method."""
    pixel_diversity_base: float | None
    f_squared: float | None
    """Mean f^2 of an element."""
    kl: float | None
    """Of the noise's distribution from N(0, I), in nats."""
    recovered_share: Shares

    def score(self, name: ScoreName) -> Score | None:
        """The checker's numbers, or those of the weighted sum of the rewards."""
        if name == "reward":
            return Score(
                mean=self.reward_mean,
                ci=self.reward_ci,
                gain=self.reward_gain,
                gain_ci=self.reward_gain_ci,
            )
        if self.checker_mean is None or self.checker_gain is None:
            return None
        return Score(
            mean=self.checker_mean,
            ci=self.checker_ci,
            gain=self.checker_gain,
            gain_ci=self.checker_gain_ci,
        )


@dataclass(frozen=True, kw_only=True)
class AblationResults(MethodResults):
    """The numbers of an adapter of the ablation."""

    kind: Literal["hypernoise", "finetune"]


Table = Mapping[str, MethodResults]
"""The methods at one number of steps, by name."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What was evaluated, and how."""

    model: str
    adapters: list[str]
    loras: list[str]
    rewards: dict[str, float]
    prompts: int
    search_prompts: int
    multi_step_search_prompts: int
    seeds: int
    image_size: tuple[int, int]
    batch_size: int
    precision: str
    device: str
    processes: int
    diversity: str
    """What `diversity` was measured with."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All results.

    Raises:
        ValueError: no steps, a method that does not exist, or steps without base; names the key.
    """

    steps: dict[int, dict[str, MethodResults]]
    """By number of generator steps and name of the method."""
    recovered_share: RecoveredShare | None
    ablation: dict[str, AblationResults]
    """By name."""
    at_our_reward: dict[str, dict[str, float] | None]
    """By path of fine-tuned generators: what is left of other scores where the path has
    HyperNoise's reward; None if it never does."""
    settings: Settings

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError("steps is empty")
        for steps, table in self.steps.items():
            if BASE not in table:
                raise ValueError(f"steps.{steps}.{BASE} is missing")
            for name in table:
                if name not in METHODS:
                    raise ValueError(f"steps.{steps}.{name[:100]} is not a known method")

    @property
    def fewest_steps(self) -> int:
        return min(self.steps)

    @property
    def first_table(self) -> Table:
        """The methods at the fewest steps."""
        return self.steps[self.fewest_steps]

    @property
    def main_score(self) -> ScoreName:
        """The checker, or the reward if there is no checker."""
        return "reward" if self.first_table[BASE].score("checker") is None else "checker"
