"""How much is tried, and what came of it.

HYPERNOISE_TRUST says how much: `quick` (the default, part of the whole suite), `short` for
`make trust`, `long` for `make trust-long`. What the tests count ends up as a table in the terminal
and in out/trust-quick.md, -short.md or -long.md.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

from hypernoise.tests.comfyui.conftest import INSIDE

# These tests import ComfyUI; test_inside.py runs them in a process of their own.
collect_ignore = [] if os.environ.get(INSIDE) else ["inside"]

REPOSITORY = Path(__file__).resolve().parents[2]
LEVELS = ("quick", "short", "long")
LEVEL = os.environ.get("HYPERNOISE_TRUST", "quick")


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


TALLY_FILE = "HYPERNOISE_TALLY"  # where a process of inside/ leaves what it has counted
_TALLIES: dict[tuple[str, str], Tally] = {}
_START = time.monotonic()


@pytest.fixture(scope="session")
def scale() -> Callable[[int, int, int], int]:
    """`scale(quick, short, long)`: the number that goes with the level."""
    if LEVEL not in LEVELS:
        raise pytest.UsageError(f"HYPERNOISE_TRUST={LEVEL}: choose from {', '.join(LEVELS)}")
    return lambda *numbers: numbers[LEVELS.index(LEVEL)]


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Callable[[str], Tally]:
    """`tally("kill -9 while training")`: the line of the table with that name."""
    place = request.node.path.relative_to(REPOSITORY).as_posix()
    return lambda name: _TALLIES.setdefault((name, place), Tally())


@pytest.fixture
def add_tallies() -> Callable[[Path], None]:
    """Takes over from its file what another process has counted."""

    def add(file: Path) -> None:
        for name, place, values in json.loads(file.read_text()):
            _TALLIES[name, place] = Tally(**values)

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _TALLIES:
        return
    if file := os.environ.get(TALLY_FILE):
        counted = [(*key, asdict(tally)) for key, tally in _TALLIES.items()]
        Path(file).write_text(json.dumps(counted))
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


@pytest.fixture(autouse=True)
def nothing_left_open(tmp_path: Path) -> Iterator[None]:
    """Bad input leaves no open file behind (Linux alone tells)."""
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        yield
        return

    def opened() -> list[str]:
        links = []
        for descriptor in folder.iterdir():
            try:
                links.append(os.readlink(descriptor))
            except OSError:  # the descriptor of this very listing
                continue
        return [link for link in links if link.startswith(str(tmp_path))]

    yield
    assert not opened()
