"""What the tests of this folder count, from every process that runs some of them, as one table."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LEVELS = ("quick", "short", "long")
LEVEL = os.environ.get("HYPERNOISE_TRUST", "quick")
TALLY_FILE = "HYPERNOISE_TALLY"  # where a process of inside/ leaves what it has counted


@dataclass
class Tally:
    """What one fault, or one class of bad input, led to."""

    tried: int = 0
    lost: int = 0
    """Times something was lost, changed or left without a clear message; the goal is none."""
    outcomes: dict[str, int] = field(default_factory=dict)

    def count(self, outcome: str, times: int = 1, *, lost: bool = False) -> None:
        """Adds tries that ended this way, such as `refused` or `resumed`."""
        self.tried += times
        self.lost += times * lost
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + times


_TALLIES: dict[tuple[str, str], Tally] = {}
_START = time.monotonic()


def line(name: str, place: str) -> Tally:
    """The line of the table with that name, for a test file."""
    return _TALLIES.setdefault((name, place), Tally())


def dumps() -> str:
    return json.dumps([(*key, asdict(tally)) for key, tally in _TALLIES.items()])


def add(counted: str) -> None:
    """Takes over what another process has counted, as `dumps` gives it."""
    for name, place, values in json.loads(counted):
        _TALLIES[name, place] = Tally(**values)


# tests/conftest.py takes these over: of several processes the first loads no other conftest.py.


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["tallies"] = dumps()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    add(getattr(node, "workeroutput", {}).get("tallies", "[]"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _TALLIES:
        return
    if file := os.environ.get(TALLY_FILE):
        Path(file).write_text(dumps())
        return
    lines = ["| tried | times | lost | outcome | test |", "| --- | --- | --- | --- | --- |"]
    for (name, place), tally in sorted(_TALLIES.items(), key=lambda item: item[0][::-1]):
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in tally.outcomes.items())
        lines.append(f"| {name} | {tally.tried} | {tally.lost} | {outcomes} | {place} |")
    minutes = (time.monotonic() - _START) / 60
    lines.append(f"\nLevel {LEVEL}, {minutes:.1f} minutes.")
    out = REPOSITORY / "out" / f"trust-{LEVEL}.md"
    out.parent.mkdir(exist_ok=True)
    out.write_text("\n".join(lines) + "\n")
    terminalreporter.write_sep("=", "what was tried")
    terminalreporter.write_line("\n".join(lines))
