"""The numbers of a run as they come: metrics.jsonl in its folder, and a tracker like TensorBoard.

The file is the record from which reports are made. A tracker is for watching a run; if it fails
after its start, the run continues without it.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from accelerate import PartialState
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker
from PIL import Image
from tqdm import tqdm

from ..hypernoise_core.atomic_file import write_atomically

FILE = "metrics.jsonl"
PROJECT = "hypernoise"
"""Name of the project in trackers that have projects."""

TrackerName = Literal["tensorboard", "wandb", "trackio", "none"]
Kind = Literal["train", "evaluation"]

_NOT_FINITE = ("NaN", "Infinity", "-Infinity")  # JSON has no such numbers: they become strings


class MetricsLog:
    """Appends metrics to metrics.jsonl, an object a line, and hands them to a tracker.

    Only the main process has one. An existing file is continued; `rewind` it first.

    Args:
        folder: of the run; TensorBoard's files are in its folder `tensorboard`.
        tracker: `none`: the file alone.
        config: settings of the run, shown by the tracker.
        run_name: what wandb and trackio call the run; None: the folder's name.

    Raises:
        ImportError: the tracker's package is missing; names the command that installs it.
        ValueError: the tracker does not start, without a network for one.
        OSError: the file cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        tracker: TrackerName,
        config: Mapping[str, object],
        *,
        run_name: str | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._tracker_name = folder / FILE, tracker
        self._run_name = run_name or folder.resolve().name
        is_new = not self._path.is_file()
        self._path.touch()
        self._tracker: GeneralTracker | None = None
        if tracker != "none":
            PartialState()  # the trackers ask it which process they are in
            self._tracker = self._start_tracker()
            if is_new or tracker != "tensorboard":  # which would show each resumption as a run
                self._track(lambda t: t.store_init_configuration(_plain(config)))

    def write(self, step: int, metrics: Mapping[str, float], kind: Kind = "train") -> None:
        """Records the metrics of a step.

        Trackers sort names by what stands before a slash: where there is none, they get the kind.

        Raises:
            OSError: the disk is full, for one; the file holds whole lines still.
            ValueError: a metric is called `step` or `kind`.
        """
        if taken := {"step", "kind"} & metrics.keys():
            raise ValueError(f"a metric cannot be named {' or '.join(sorted(taken))}")
        values = {name: float(value) for name, value in metrics.items()}
        self._append({"step": step, "kind": kind, **values})
        shown = {name if "/" in name else f"{kind}/{name}": v for name, v in values.items()}
        self._track(lambda t: t.log(shown, step=step))

    def picture(self, step: int, name: str, path: Path) -> None:
        """Hands an image file to the tracker, if it is one that shows images."""
        if not hasattr(self._tracker, "log_images"):
            return
        options = {"dataformats": "NHWC"} if self._tracker_name == "tensorboard" else {}

        def show(tracker: GeneralTracker) -> None:
            pixels = np.asarray(Image.open(path).convert("RGB"))[None]  # (1, H, W, 3)
            tracker.log_images({name: pixels}, step=step, **options)

        self._track(show)

    def rewind(self, step: int, evaluated: int | None = None) -> None:
        """Drop what was recorded after the step from which the run resumes.

        A last line that a crash truncated is dropped as well. wandb and trackio keep what they
        have: there the run continues as a new one.

        Args:
            evaluated: the last step whose evaluation stays; None: `step`.

        Raises:
            OSError: the file cannot be written.
            ValueError: a line is damaged; names it.
        """
        last = {"train": step, "evaluation": step if evaluated is None else evaluated}
        rows = _whole_lines(self._path)
        lines = [line for line, row in rows if row["step"] <= last.get(row["kind"], step)]
        write_atomically(self._path, b"".join(lines))
        if self._tracker is not None and self._tracker_name == "tensorboard":
            self._track(lambda t: t.finish())
            self._tracker = self._start_tracker(purge_step=step + 1)

    def close(self) -> None:
        """Lets the tracker finish; nothing can be handed to it any more."""
        self._track(lambda t: t.finish())
        self._tracker = None

    def _append(self, line: dict[str, object]) -> None:
        content = json.dumps({name: _as_json(value) for name, value in line.items()}) + "\n"
        size = self._path.stat().st_size
        try:
            with self._path.open("ab") as file:
                file.write(content.encode())
        except OSError as error:
            os.truncate(self._path, size)  # no half line
            error.filename = str(self._path)  # a full disk names no file
            raise

    def _start_tracker(self, **options: Any) -> GeneralTracker:
        name = self._tracker_name
        try:
            tracker = self._make_tracker(**options)
            tracker.start()
        except ImportError as error:
            raise ImportError(
                f"--tracker {name} needs {name}: pip install {name}, or choose --tracker none, "
                f"which writes {FILE} alone ({error})"
            ) from error
        except Exception as error:  # a tracker's own, of any kind
            offline = " or set WANDB_MODE=offline," if name == "wandb" else ""
            raise ValueError(
                f"--tracker {name} could not be started ({type(error).__name__}: {error}): fix the "
                f"cause,{offline} or choose --tracker none, which writes {FILE} alone"
            ) from error
        return tracker

    def _make_tracker(self, **options: Any) -> GeneralTracker:
        folder = self._path.parent
        if self._tracker_name == "tensorboard":
            return TensorBoardTracker("tensorboard", folder, **options)
        if self._tracker_name == "wandb":
            return WandBTracker(PROJECT, name=self._run_name, dir=str(folder))
        return TrackioTracker(PROJECT, name=self._run_name)

    def _track(self, action: Callable[[GeneralTracker], None]) -> None:
        """Run an action on the tracker; at its first failure drop the tracker with a warning."""
        if self._tracker is None:
            return
        try:
            action(self._tracker)
        except Exception as error:  # a tracker's own, of any kind
            self._tracker = None
            tqdm.write(
                f"the tracker {self._tracker_name} failed and is off for the rest of this run "
                f"({type(error).__name__}: {error}); metrics still go to {self._path}",
                file=sys.stderr,
            )


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl in their order: `step`, `kind` and metrics by name.

    A last line that is not whole, because it is being written or a crash cut it short, is left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is damaged; names it.
    """
    return [
        {name: float(v) if v in _NOT_FINITE else v for name, v in row.items()}
        for _, row in _whole_lines(folder / FILE)
    ]


def _whole_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            return
        try:
            row = json.loads(line)
            row["step"] + 0, row["kind"] + ""
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise ValueError(
                f"line {number} of {path} is damaged ({error}): delete that line, or the file"
            ) from error
        yield line, row


def _as_json(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _plain(config: Mapping[str, object]) -> dict[str, object]:
    """Settings as trackers take them: numbers, switches and texts."""
    return {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in config.items()
    }
