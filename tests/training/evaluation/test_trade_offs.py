"""Stages of an ablation as paths, and where they cross a reward."""

import pytest

from hypernoise.training.evaluation import trade_offs
from hypernoise.training.evaluation.results import AblationResults, Shares


def test_a_fine_tune_is_compared_where_its_reward_is_ours():
    def entry(kind: str, reward: float, checker: float, pixels: float) -> AblationResults:
        return AblationResults(
            kind=kind, images=1, prompts=1, runs=[], checker_mean=checker, checker_ci=None,
            checker_gain=0.0, checker_gain_ci=None, checker={}, reward_mean=reward, reward_ci=None,
            reward_gain=0.0, reward_gain_ci=None, win_rate=0.5, rewards={}, seconds_per_image=0.1,
            network_evaluations=1.0, forward_passes=1.0, backward_passes=0.0, diversity=None,
            pixel_diversity=pixels, diversity_base=None, pixel_diversity_base=None, f_squared=None,
            kl=None, recovered_share=Shares(reward=None, checker_mean=None),
        )  # fmt: skip

    table = {
        "base": entry("hypernoise", 10, 0.5, 0.2),
        "hypernoise": entry("hypernoise", 13, 0.8, 0.1),
    }
    ablation = {
        "lr_0.1_20": entry("finetune", 9, 0.4, 0.18),
        "lr_0.1_40": entry("finetune", 12, 0.6, 0.1),
        "lr_0.1_80": entry("finetune", 16, 0.2, 0.02),
        "lr_0.1_160": entry("finetune", 12, 0.0, 0.0),
        "lr_0.1_320": entry("finetune", 14, 0.0, 0.0),
        "lr_0.2_20": entry("finetune", 12.9, 0.4, 0.1),
        "rank_2": entry("hypernoise", 14, 0.4, 0.1),
    }
    paths = trade_offs.paths(table, ablation)
    assert {name: [stage.label for stage in stages] for name, stages in paths.items()} == {
        "lr_0.1": ["base", "20", "40", "80", "160", "320"],
        "lr_0.2": ["base", "20"],
        "rank": ["base", "2"],
    }
    # A quarter of the way from 12 to 16, the first time that the path is there.
    assert trade_offs.at_our_reward(table, ablation) == {
        "lr_0.1": pytest.approx({"checker_mean": 0.5, "pixel_diversity": 0.08}),
        "lr_0.2": None,
    }
