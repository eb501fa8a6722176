"""Checkpoints: as many as asked for, whole ones, and an older one where writing fails."""

import errno
from pathlib import Path

import pytest
import torch

from hypernoise.training.checkpoints import Checkpoints


def save(checkpoints: Checkpoints, step: int) -> Path:
    state = {"step": step, "weights": torch.full((100,), float(step))}
    return checkpoints.save(step, state, lambda path: path.write_bytes(b"adapter"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_stay_each_with_its_adapter(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    for step in (1, 2, 10):
        save(checkpoints, step)
    assert names(tmp_path) == [
        f"step_{step:09d}.{suffix}" for step in (2, 10) for suffix in ("pt", "safetensors")
    ]
    assert checkpoints.load_newest()["step"] == 10


def test_other_files_of_the_folder_stay(tmp_path):
    others = ["step_1.pt", "step_000000001.pt.bak", "notes.txt"]
    for name in others:
        (tmp_path / name).write_text("mine")
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    save(checkpoints, 2)
    save(checkpoints, 3)
    assert set(others) < set(names(tmp_path)) and len(names(tmp_path)) == 5


def test_a_checkpoint_with_a_flipped_bit_is_damaged_and_the_one_before_it_serves(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    save(checkpoints, 1)
    path = save(checkpoints, 2)
    content = path.read_bytes()
    place = content.index(torch.full((100,), 2.0).numpy().tobytes())
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(ValueError, match="step_000000002.pt is damaged.*Delete it"):
        checkpoints.load_newest()
    path.unlink()
    assert checkpoints.load_newest()["step"] == 1


def test_an_adapter_that_cannot_be_written_leaves_the_earlier_checkpoints(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    save(checkpoints, 1)

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(2, {"step": 2}, full)
    assert checkpoints.load_newest()["step"] == 1 and len(names(tmp_path)) == 2
