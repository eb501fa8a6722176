"""Progress bars on a terminal; elsewhere, as in a log file, a line from time to time."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

SECONDS = 30.0
"""Interval between two lines."""

_LINE = (
    "{desc}: {percentage:3.0f}%, {n_fmt} of {total_fmt}, {elapsed}<{remaining}, {rate_fmt}{postfix}"
)


def progress_bar(*args: Any, **options: Any) -> tqdm:
    """A bar on stderr; if that is not a terminal, a line every `SECONDS` and one at the end.

    Args:
        args, options: those of tqdm. A disabled bar, or one with a total of 0, shows nothing;
            TQDM_DISABLE=1 in the environment disables all bars.
    """
    if options.pop("disable", False) or options.get("total") == 0:
        options["disable"] = True  # False would override the environment
    if sys.stderr.isatty():
        return tqdm(*args, **options)
    return _Lines(*args, **options | {"bar_format": _LINE, "mininterval": SECONDS})


class _Lines(tqdm):
    def __init__(self, *args: Any, **options: Any) -> None:
        self._said = time.monotonic()
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Write a line unless the last one is recent; tqdm itself ends the final line."""
        now = time.monotonic()
        if not self.disable and now - self._said < SECONDS:
            return False
        self._said = now
        self.fp.write(str(self) if self.disable else f"{self}\n")
        return True

    def clear(self, nolock: bool = False) -> None:
        """Do nothing: lines that are written stay."""


def keep_loading_quiet() -> None:
    """Hide the progress bars of model loading where stderr is not a terminal."""
    if sys.stderr.isatty():
        return
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
