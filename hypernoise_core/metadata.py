"""What an adapter says about itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .errors import AdapterError
from .strict_json import parse_object

FORMAT_VERSION = 1
GENERATOR_LORA = {"kind": "generator_lora"}
"""Additional header entry of a LoRA on the generator itself."""


@dataclass(frozen=True, kw_only=True)
class AdapterMetadata:
    """Facts about an adapter that its weights do not show."""

    family: str
    """Name of the generator family, as `get_family` takes it."""
    rank: int
    """Rank r of most layers; single layers may differ."""
    alpha: float
    """LoRA alpha of most layers; a branch is scaled by alpha / rank."""
    last_layer: str
    """Name of the layer that returns its LoRA branch alone."""
    base_model: str | None = None
    """Repository or folder of the frozen generator it was trained for."""
    training_steps: int | None = None
    """Optimizer updates it was trained for."""
    rewards: Mapping[str, float] = field(default_factory=dict)
    """Weight of each reward it was trained on."""
    replaces_noise: bool = False
    """Whether f takes the noise's place instead of being added to it."""
    format_version: int = FORMAT_VERSION
    """Version of the file format; a reader refuses versions above its own."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise AdapterError(f"rank must be at least 1, got {self.rank}")
        check_alpha(self.alpha)
        texts = (self.family, self.last_layer, self.base_model or "", *self.rewards)
        if wrong := [text for text in texts if not text.isprintable()]:
            raise AdapterError(f"a name must be printable text, got {wrong[0][:200]!r}")
        if self.training_steps is not None and self.training_steps < 0:
            raise AdapterError(f"training_steps must not be negative, got {self.training_steps}")
        if wrong := [f"{n}={w!r}" for n, w in self.rewards.items() if not _is_finite(w)]:
            raise AdapterError(f"weights of rewards must be numbers, got {', '.join(wrong)[:200]}")
        if self.format_version > FORMAT_VERSION:
            raise AdapterError(
                f"the adapter has format version {self.format_version}, this hypernoise reads up "
                f"to {FORMAT_VERSION}: update hypernoise"
            )

    def to_header(self) -> dict[str, str]:
        """Entries of a .safetensors header, which holds strings; unknown facts are left out."""
        header = {
            "format_version": str(self.format_version),
            "family": self.family,
            "rank": str(self.rank),
            "alpha": repr(float(self.alpha)),
            "last_layer": self.last_layer,
            "rewards": json.dumps(dict(self.rewards)),
        }
        if self.base_model is not None:
            header["base_model"] = self.base_model
        if self.training_steps is not None:
            header["training_steps"] = str(self.training_steps)
        if self.replaces_noise:
            header["replaces_noise"] = "true"
        return header

    @classmethod
    def from_header(cls, header: Mapping[str, str]) -> AdapterMetadata:
        """The inverse of `to_header`.

        Raises:
            AdapterError: an entry is missing or is not what its name says.
        """
        entries: dict[str, Any] = {f.name: header[f.name] for f in fields(cls) if f.name in header}
        try:
            for name in entries.keys() & {"format_version", "rank", "training_steps"}:
                entries[name] = int(entries[name])
            entries["alpha"] = float(entries["alpha"])
            entries["replaces_noise"] = entries.get("replaces_noise") == "true"
            entries["rewards"] = parse_object(entries.get("rewards", "{}"))
            return cls(**entries)
        except AdapterError as error:
            raise AdapterError(f"the metadata in the file's header: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise AdapterError(f"the metadata in the file's header is damaged: {error}") from error


def check_alpha(alpha: float) -> None:
    """Raises AdapterError unless it is a positive number: with 0 an adapter does nothing."""
    if not (_is_finite(alpha) and alpha > 0):
        raise AdapterError(f"alpha must be a positive number, got {alpha!r}")


def _is_finite(value: object) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max


def is_hypernoise_header(header: Mapping[str, str]) -> bool:
    """Whether a .safetensors header was written by `AdapterMetadata.to_header`."""
    return "format_version" in header and "family" in header


def is_generator_lora(header: Mapping[str, str]) -> bool:
    """Whether a .safetensors header is that of a LoRA on the generator itself."""
    return header.get("kind") == GENERATOR_LORA["kind"]
