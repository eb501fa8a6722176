"""The rewards there are. A new one is one file here, a line in `REWARDS` and its name in
`reward_names.NAMES`."""

from __future__ import annotations

from ..reward_names import check_reward
from .aesthetic import Aesthetic
from .clip_score import ClipScore
from .hps import Hps
from .image_reward import ImageReward
from .pickscore import PickScore
from .redness import Redness
from .reward import Reward
from .tiny_preference import TinyPreference

REWARDS: tuple[type[Reward], ...] = (
    Hps,
    ImageReward,
    ClipScore,
    PickScore,
    Aesthetic,
    Redness,
    TinyPreference,
)


def get_reward(name: str) -> type[Reward]:
    """The reward class with this name.

    Raises:
        ValueError: there is none; the message lists the names there are.
    """
    check_reward(name)
    return next(reward for reward in REWARDS if reward.name == name)
