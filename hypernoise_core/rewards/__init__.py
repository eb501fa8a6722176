"""Rewards: scorers of images against prompts, shared by nodes, training and evaluation."""

from .reward import Reward
from .tiny_preference import TinyPreference

REWARDS: tuple[type[Reward], ...] = (TinyPreference,)

__all__ = ["REWARDS", "Reward", "TinyPreference", "get_reward"]


def get_reward(name: str) -> type[Reward]:
    """The reward class with this name.

    Raises:
        ValueError: there is none; the message lists the names there are.
    """
    for reward in REWARDS:
        if reward.name == name:
            return reward
    known = ", ".join(sorted(reward.name for reward in REWARDS))
    raise ValueError(f"unknown reward {name!r}, choose from {known}")
