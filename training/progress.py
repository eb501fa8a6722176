"""Progress bars; where nobody watches, as in a log file, a line now and then in their place."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

SECONDS = 30.0
"""Between two lines."""

_LINE = (
    "{desc}: {percentage:3.0f}%, {n_fmt} of {total_fmt}, {elapsed}<{remaining}, {rate_fmt}{postfix}"
)


def progress_bar(*args: Any, **options: Any) -> tqdm:
    """A bar on stderr; what is no terminal gets a line each `SECONDS`, and one at the end.

    Args:
        args, options: tqdm's. What is disabled or has nothing to do shows nothing; TQDM_DISABLE=1
            in the environment does that to all.
    """
    if options.pop("disable", False) or options.get("total") == 0:
        options["disable"] = True  # False would beat the environment
    if sys.stderr.isatty():
        return tqdm(*args, **options)
    return _Lines(*args, **options | {"bar_format": _LINE, "mininterval": SECONDS})


class _Lines(tqdm):
    def __init__(self, *args: Any, **options: Any) -> None:
        self._said = time.monotonic()
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Writes a line, but not soon after another; tqdm itself ends the last one."""
        now = time.monotonic()
        if not self.disable and now - self._said < SECONDS:
            return False
        self._said = now
        self.fp.write(str(self) if self.disable else f"{self}\n")
        return True

    def clear(self, nolock: bool = False) -> None:
        """Nothing: what is written stays."""


def keep_loading_quiet() -> None:
    """Keeps the bars with which libraries load models out of what is no terminal."""
    if sys.stderr.isatty():
        return
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
