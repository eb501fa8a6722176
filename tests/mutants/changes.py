"""Lists of realistic changes to the source, each of which some test has to notice."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LISTS = Path(__file__).resolve().parent
REPOSITORY = LISTS.parents[1]


@dataclass(frozen=True)
class Change:
    """One piece of text in the source, what it becomes, and the tests that should notice."""

    what: str
    """What the change makes of the behaviour."""
    file: str
    """From the repository's root."""
    old: str
    """Occurs once in the file."""
    new: str
    tests: tuple[str, ...]
    """Arguments of pytest, from the repository's root."""

    def applied(self, text: str) -> str:
        """The file's text with the change in it.

        Raises:
            ValueError: the old text does not occur exactly once.
        """
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.file} holds {self.old!r} {count} times, not once: {self.what}")
        return text.replace(self.old, self.new)


def read_changes() -> dict[str, list[Change]]:
    """The changes by the name of their list, which is that of the part of the source they are in.

    Raises:
        ValueError: names the list that cannot be read.
    """
    return {path.stem: _read(path) for path in sorted(LISTS.glob("*.toml"))}


def _read(path: Path) -> list[Change]:
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))["change"]
        return [Change(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is no list of changes: {error}") from error
