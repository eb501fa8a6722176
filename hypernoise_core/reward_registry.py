"""The names of all rewards, for settings; imports neither torch nor a network.

A new reward is one file in rewards/ and one line in `CLASSES`.
"""

from __future__ import annotations

import math

CLASSES = {
    "hps": "hps.Hps",
    "imagereward": "image_reward.ImageReward",
    "clip": "clip_score.ClipScore",
    "pickscore": "pickscore.PickScore",
    "aesthetic": "aesthetic.Aesthetic",
    "redness": "redness.Redness",
    "tiny-preference": "tiny_preference.TinyPreference",
}
"""Module in rewards/ and class of each reward, by name."""
NAMES = tuple(CLASSES)
PAPER = "paper"
"""Name for the paper's four rewards with the paper's weights."""
PAPER_WEIGHTS = {"hps": 5.0, "imagereward": 1.0, "clip": 0.01, "pickscore": 0.05}
"""The paper's ensemble."""


def check_reward(name: str) -> None:
    """Check that there is a reward with this name.

    Raises:
        ValueError: there is none; the message lists the names.
    """
    if name not in NAMES:
        raise ValueError(f"unknown reward {name!r}, choose from {', '.join(sorted(NAMES))}")


def paper_weights() -> dict[str, float]:
    """A copy of `PAPER_WEIGHTS`."""
    return dict(PAPER_WEIGHTS)


def parse_weights(text: str) -> dict[str, float]:
    """Parse `hps=5,clip=0.01` (a name without a weight has weight 1) or `paper`.

    Raises:
        ValueError: names the part that cannot be read.
    """
    if text.strip() == PAPER:
        return paper_weights()
    weights: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, weight = (piece.strip() for piece in part.partition("="))
        check_reward(name)
        if name in weights:
            raise ValueError(f"the reward {name} appears twice in {text!r}")
        try:
            weights[name] = float(weight or 1)
        except ValueError as error:
            raise ValueError(f"the weight of {name} is not a number: {weight!r:.60}") from error
        if not math.isfinite(weights[name]):
            raise ValueError(f"the weight of {name} is {weight:.60}; it must be finite")
    if not weights:
        raise ValueError(f"no rewards in {text!r}; give some, such as hps=5,imagereward=1")
    return weights
