"""Rewards: scorers of images against prompts, shared by nodes, training and evaluation.

ensemble = load_rewards({"hps": 5.0, "imagereward": 1.0})
scores = ensemble.score(images, prompts)  # (B,), higher is better, differentiable in images
"""

from ..reward_registry import paper_weights, parse_weights
from .classes import REWARDS, get_reward
from .comparison import Comparison, compare
from .ensemble import (
    Ensemble,
    load_rewards,
    reward_identities,
    score_in_batches,
)
from .reward import Reward
from .weights import WeightStore

__all__ = [
    "REWARDS",
    "Comparison",
    "Ensemble",
    "Reward",
    "WeightStore",
    "compare",
    "get_reward",
    "load_rewards",
    "paper_weights",
    "parse_weights",
    "reward_identities",
    "score_in_batches",
]
