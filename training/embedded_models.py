"""The models in this repository, which draw the tiny world."""

from pathlib import Path

ASSETS = Path(__file__).resolve().parents[1] / "assets"
EMBEDDED = {"tiny-sprint": ASSETS / "tiny-sprint"}
"""Folders of the generators by name."""
EMBEDDED_ADAPTER = ASSETS / "tiny-hypernoise.safetensors"
"""The noise hypernetwork of tiny-sprint."""


def default_rewards(model: str) -> str:
    """The rewards of a model where none are named, as `parse_weights` takes them."""
    return "tiny-preference" if model in EMBEDDED else "paper"
