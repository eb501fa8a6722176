"""The seeds that torch accepts."""

from __future__ import annotations

from collections.abc import Iterable

_SMALLEST, _LARGEST = -(2**63), 2**64 - 1


def check_seeds(seeds: Iterable[int]) -> None:
    """Check that torch accepts each seed.

    Raises:
        ValueError: names the one that is out of range.
    """
    for seed in seeds:
        if not _SMALLEST <= int(seed) <= _LARGEST:
            raise ValueError(
                f"seed {seed} is out of range: seeds go from {_SMALLEST} to {_LARGEST}"
            )
