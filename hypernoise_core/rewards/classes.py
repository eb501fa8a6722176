"""The classes of the rewards, in the order of `reward_registry.CLASSES`."""

from __future__ import annotations

from importlib import import_module

from ..reward_registry import CLASSES, check_reward
from .reward import Reward


def _load(place: str) -> type[Reward]:
    module, _, name = place.partition(".")
    return getattr(import_module(f"{__package__}.{module}"), name)


_BY_NAME = {name: _load(place) for name, place in CLASSES.items()}
REWARDS: tuple[type[Reward], ...] = tuple(_BY_NAME.values())


def get_reward(name: str) -> type[Reward]:
    """The reward class with this name.

    Raises:
        ValueError: there is none; the message lists the names.
    """
    check_reward(name)
    return _BY_NAME[name]
