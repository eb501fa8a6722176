"""Checkpoints of a run, written atomically: the newest ones, and the best adapter.

A checkpoint is two files: the state to resume from, and the adapter at that update.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..hypernoise_core.atomic_file import atomic_writer

BEST = "best.safetensors"
"""The adapter as of the best evaluation."""

_NAME = re.compile(r"step_\d{9}\.(pt|safetensors)")


class Checkpoints:
    """The checkpoints in a folder.

    Args:
        folder: made at the first save.
        keep_last: how many stay; older ones are deleted after each save.
    """

    def __init__(self, folder: Path, keep_last: int) -> None:
        self.folder, self.keep_last = folder, keep_last

    def save(self, step: int, state: dict[str, Any], save_adapter: Callable[[Path], None]) -> Path:
        """Writes the state after so many updates; a crash leaves the earlier checkpoints.

        Args:
            state: tensors, numbers, strings, lists and dicts.
            save_adapter: writes the adapter to a path.

        Raises:
            OSError: it could not be written, for example because the disk is full.
        """
        path = self.folder / f"step_{step:09d}.pt"
        adapter = path.with_suffix(".safetensors")
        save_adapter(adapter)
        try:
            with atomic_writer(path) as file:
                torch.save(state, file)
        except BaseException as error:
            if not path.is_file():
                adapter.unlink()
            if not isinstance(error, RuntimeError):
                raise
            # torch.save, closing its archive, may hide the OSError that ended the writing.
            below = error
            while below is not None and not isinstance(below, OSError):
                below = below.__context__
            if below is None:
                raise OSError(f"{path} could not be written: {error}") from error
            raise OSError(below.errno, below.strerror, str(path)) from error
        kept = {path.stem for path in self.paths()[-self.keep_last :]}
        for file in self.folder.iterdir():
            if _NAME.fullmatch(file.name) and file.stem not in kept:
                file.unlink()
        return path

    def paths(self) -> list[Path]:
        """All checkpoints, the oldest first."""
        found = self.folder.glob("step_*.pt")
        return sorted(path for path in found if _NAME.fullmatch(path.name))

    def load_newest(self) -> dict[str, Any]:
        """The state of the newest checkpoint, on the CPU.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged.
        """
        if not (paths := self.paths()):
            raise FileNotFoundError(f"no checkpoint in {self.folder} to resume from")
        try:
            with zipfile.ZipFile(paths[-1]) as file:
                if (part := file.testzip()) is not None:  # torch.load would not notice
                    raise zipfile.BadZipFile(f"the checksum of {part} is wrong")
            return torch.load(paths[-1], map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
            raise damaged(paths[-1], error) from error


class BestCheckpoint:
    """The adapter as of the best evaluation, in the folder of a run.

    Attributes:
        reward: total reward of that evaluation; None: no evaluation so far.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.reward = folder / BEST, None

    def update(self, reward: float, save_adapter: Callable[[Path], None]) -> None:
        """Saves the adapter if its reward is the highest so far, which NaN never is.

        Raises:
            OSError: it could not be written.
        """
        if not math.isnan(reward) and (self.reward is None or reward > self.reward):
            save_adapter(self.path)
            self.reward = reward

    def resume(self, reward: float | None) -> bool:
        """Continues with the best reward so far; False: its file is missing, so it starts anew."""
        self.reward = reward if self.path.is_file() else None
        return self.reward == reward


def damaged(path: Path, reason: Exception) -> ValueError:
    """What to do where a checkpoint cannot be used."""
    first = f"{reason}".splitlines()[0] if f"{reason}" else type(reason).__name__
    return ValueError(
        f"{path} is damaged, or of another version: {first}. Delete it to resume from the one "
        f"before it."
    )
