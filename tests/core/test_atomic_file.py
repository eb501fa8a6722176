"""A file is written as a whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from hypernoise.hypernoise_core.atomic_file import remove_halves, write_atomically


def test_a_disk_that_becomes_read_only_is_named_by_the_file(tmp_path, monkeypatch):
    """Not by the one beside, which cannot even be deleted."""
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(b"old")

    def refuse(name, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(name))

    with monkeypatch.context() as read_only:
        read_only.setattr(os, "replace", refuse)
        read_only.setattr(Path, "unlink", refuse)
        with pytest.raises(OSError, match="Read-only file system") as raised:
            write_atomically(path, b"new")
    assert raised.value.filename == str(path) and path.read_bytes() == b"old"
    remove_halves(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
