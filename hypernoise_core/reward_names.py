"""Names and weights of the rewards, as settings give them; imports no network and no torch."""

from __future__ import annotations

import math

PAPER = "paper"
"""Name of the paper's four rewards with its weights."""
PAPER_WEIGHTS = {"hps": 5.0, "imagereward": 1.0, "clip": 0.01, "pickscore": 0.05}
"""The paper's ensemble."""
NAMES = (*PAPER_WEIGHTS, "aesthetic", "redness", "tiny-preference")
"""Every reward, in the order of `rewards.REWARDS`."""


def check_reward(name: str) -> None:
    """Makes sure that there is a reward of this name.

    Raises:
        ValueError: there is none; the message lists the names there are.
    """
    if name not in NAMES:
        raise ValueError(f"unknown reward {name!r}, choose from {', '.join(sorted(NAMES))}")


def paper_weights() -> dict[str, float]:
    """A copy of `PAPER_WEIGHTS`."""
    return dict(PAPER_WEIGHTS)


def parse_weights(text: str) -> dict[str, float]:
    """`hps=5,clip=0.01`, or names alone with weight 1, or `paper`.

    Raises:
        ValueError: names what cannot be read.
    """
    if text.strip() == PAPER:
        return paper_weights()
    weights: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, weight = (piece.strip() for piece in part.partition("="))
        check_reward(name)
        if name in weights:
            raise ValueError(f"the reward {name} is named twice in {text!r}")
        try:
            weights[name] = float(weight or 1)
        except ValueError as error:
            raise ValueError(f"the weight of {name} is no number: {weight!r:.60}") from error
        if not math.isfinite(weights[name]):
            raise ValueError(f"the weight of {name} is {weight:.60}; it has to be finite")
    if not weights:
        raise ValueError(f"no reward in {text!r}; name some, such as hps=5,imagereward=1")
    return weights
