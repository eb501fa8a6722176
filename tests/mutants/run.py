"""`make mutants`: makes the listed changes one at a time and says which of them the tests notice.

Each worker has a copy of the repository, so that a change is never in the working tree. The
recorded outputs of the reference are kept from the tests: people who clone the project lack them.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from operator import methodcaller
from pathlib import Path
from queue import Queue

from ..comfyui.conftest import INSIDE
from ..comfyui.fetch_comfyui import comfyui_path
from .changes import REPOSITORY, Change, read_changes

PACKAGE = "hypernoise"  # the repository's root is the package of that name
REFERENCE = "HYPERNOISE_REFERENCE"
TIMEOUT = 600.0  # seconds, for the tests of one change
PASSED, FAILED = 0, 1  # pytest's exit codes
_INSIDE = "/inside/"  # tests that import ComfyUI, in a process of their own
_FAILURE = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """What the tests made of a change."""

    noticed: bool
    by: str
    """The tests that failed; why it does not count, where the tests did not run."""


PASSED_ALL = Outcome(False, "")


class Worker:
    """A copy of the repository in which changes are made and tests run.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.root, self.temporary = folder / PACKAGE, folder / "tmp"
        self.temporary.mkdir()
        for name in _files():
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, self.root / name)
        # The pytest of this Python, not `-m pytest`, which would put our nodes/ on sys.path.
        self.pytest = [str(Path(sys.executable).with_name("pytest"))]
        self.pytest += ["-q", "-p", "no:cacheprovider"]
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != REFERENCE},
            "PYTHONPATH": str(folder),
            "TMPDIR": str(self.temporary),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }

    def try_change(self, change: Change) -> Outcome:
        """What its tests make of it."""
        with self._changed(change):
            return self.run(change.tests, ["-x"], TIMEOUT)

    def run(
        self, tests: Iterable[str], options: Sequence[str] = (), timeout: float | None = None
    ) -> Outcome:
        """The outcome of these tests, with these options of pytest."""
        processes: dict[str, list[str]] = {}  # by the folder whose tests import ComfyUI, or none
        for test in tests:
            folder, inside, _ = test.partition(_INSIDE)
            processes.setdefault(folder if inside else "", []).append(test)
        for folder, chosen in sorted(processes.items()):
            variables = {INSIDE: str(comfyui_path())} if folder else {}
            outcome = self._pytest([*options, *chosen], variables, timeout)
            if outcome != PASSED_ALL:
                return outcome
        return PASSED_ALL

    def _pytest(
        self, arguments: Sequence[str], variables: dict[str, str], timeout: float | None
    ) -> Outcome:
        try:
            result = subprocess.run(
                [*self.pytest, *arguments],
                cwd=self.root,
                env=self.environment | variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Outcome(True, f"no end after {timeout:.0f} s")
        found = _FAILURE.findall(result.stdout)
        if result.returncode == FAILED and found:
            return Outcome(True, ", ".join(found))
        if result.returncode == PASSED:
            return PASSED_ALL
        return Outcome(False, f"pytest ended with {result.returncode}: {result.stdout[-600:]}")

    @contextmanager
    def _changed(self, change: Change) -> Iterator[None]:
        path = self.root / change.file
        text = path.read_text(encoding="utf-8")
        try:
            path.write_text(change.applied(text), encoding="utf-8")
            _forget_bytecode(path)
            yield
        finally:
            path.write_text(text, encoding="utf-8")
            _forget_bytecode(path)
            shutil.rmtree(self.temporary, ignore_errors=True)
            self.temporary.mkdir(exist_ok=True)


def _files() -> list[str]:
    """What git knows of and what it would add, as far as it is there."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if (REPOSITORY / name).is_file()]


def _forget_bytecode(path: Path) -> None:
    """Python tells an old .pyc by the second and the size, which a change may leave the same."""
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
        compiled.unlink()


def table(outcomes: dict[str, dict[Change, Outcome]]) -> str:
    """Markdown: a line for each list, then what was not noticed."""
    lines = ["| part | changes | noticed | share |", "| --- | --- | --- | --- |"]
    for name, tried in outcomes.items():
        noticed = sum(outcome.noticed for outcome in tried.values())
        lines.append(f"| {name} | {len(tried)} | {noticed} | {noticed / len(tried):.0%} |")
    total = [outcome.noticed for tried in outcomes.values() for outcome in tried.values()]
    lines.append(f"| all | {len(total)} | {sum(total)} | {sum(total) / len(total):.0%} |")
    for name, tried in outcomes.items():
        for change, outcome in tried.items():
            if not outcome.noticed:
                reason = f" ({outcome.by})" if outcome.by else ""
                lines.append(f"\nNot noticed in {name}: {change.what}, `{change.file}`{reason}")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="*", help="names of lists; default: all")
    parser.add_argument("--only", default="", help="only changes with this in what they say")
    parser.add_argument("--jobs", type=int, default=2, help="changes tried at a time")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "out" / "mutants.md")
    arguments = parser.parse_args()
    changes = {
        name: [change for change in listed if arguments.only in change.what]
        for name, listed in read_changes().items()
        if name in (arguments.parts or [name])
    }
    changes = {name: listed for name, listed in changes.items() if listed}
    if not changes:
        parser.error("no such change")
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        Path(folder).chmod(0o755)  # a test becomes another user, who has to get in
        outcomes = _try_all(changes, Path(folder), arguments.jobs)
    report = table(outcomes)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(report, encoding="utf-8")
    print(report)
    return 0


def _try_all(
    changes: dict[str, list[Change]], folder: Path, jobs: int
) -> dict[str, dict[Change, Outcome]]:
    """Shows each outcome when it is there.

    Raises:
        SystemExit: tests fail without any change.
    """
    free: Queue[Worker] = Queue()
    for number in range(jobs):
        (own := folder / str(number)).mkdir()
        free.put(Worker(own))

    def by_a_worker(act: Callable[[Worker], Outcome]) -> Outcome:
        worker = free.get()
        try:
            return act(worker)
        finally:
            free.put(worker)

    everything = [change for listed in changes.values() for change in listed]
    used = sorted({test for change in everything for test in change.tests})
    print(f"first the tests of {len(everything)} changes, without any", flush=True)
    found: dict[Change, Outcome] = {}
    with ThreadPoolExecutor(jobs) as pool:
        shares = [methodcaller("run", used[number::jobs]) for number in range(jobs)]
        for outcome in pool.map(by_a_worker, shares):
            if outcome != PASSED_ALL:
                sys.exit(f"tests fail without any change: {outcome.by}")
        start = time.monotonic()
        tried = {
            pool.submit(by_a_worker, methodcaller("try_change", change)): change
            for change in everything
        }
        for done in as_completed(tried):
            change = tried[done]
            found[change] = outcome = done.result()
            verdict = "noticed" if outcome.noticed else "NOT NOTICED"
            minutes = (time.monotonic() - start) / 60
            print(
                f"{len(found)}/{len(everything)}, {minutes:.0f} min, {verdict}: {change.what} "
                f"[{outcome.by}]",
                flush=True,
            )
    return {name: {change: found[change] for change in listed} for name, listed in changes.items()}


if __name__ == "__main__":
    sys.exit(main())
