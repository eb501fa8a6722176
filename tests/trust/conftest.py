"""How much is tried, and what came of it.

HYPERNOISE_TRUST says how much: `quick` (the default, part of the whole suite), `short` for
`make trust`, `long` for `make trust-long`. What the tests count ends up as a table in the terminal
and in out/trust-quick.md, -short.md or -long.md.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hypernoise.tests.comfyui.conftest import INSIDE
from hypernoise.tests.trust import tallies
from hypernoise.tests.trust.tallies import LEVEL, LEVELS, REPOSITORY, Tally

# These tests import ComfyUI; test_inside.py runs them in a process of their own.
collect_ignore = [] if os.environ.get(INSIDE) else ["inside"]


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
    return lambda name: tallies.line(name, place)


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
