"""A file is written as a whole or not at all."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hypernoise.hypernoise_core.atomic_file import (
    atomic_writer,
    remove_temporary_files,
    write_atomically,
)

unix = pytest.mark.skipif(os.name != "posix", reason="modes, owners and links of Unix")


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
    remove_temporary_files(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


@unix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o444])
def test_a_file_that_is_replaced_keeps_its_mode(tmp_path, mode):
    path = tmp_path / "table.csv"
    path.write_bytes(b"old")
    path.chmod(mode)
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and path.stat().st_mode & 0o777 == mode


@unix
def test_a_new_file_gets_the_mode_of_any_other(tmp_path):
    (tmp_path / "plain").touch()
    write_atomically(tmp_path / "new", b"")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode


@unix
def test_a_file_that_is_replaced_keeps_its_owner_and_group(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("root alone may give files away")
    path = tmp_path / "table.csv"
    path.write_bytes(b"old")
    os.chown(path, 1234, 2345)
    write_atomically(path, b"new")
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 2345)


@unix
@pytest.mark.parametrize("dangling", [False, True], ids=["whole", "dangling"])
def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path, dangling):
    target = tmp_path / "elsewhere" / "table.csv"
    if not dangling:
        target.parent.mkdir()
        target.write_bytes(b"old")
        target.chmod(0o640)
    (tmp_path / "second").symlink_to(target)
    link = tmp_path / "first"
    link.symlink_to("second")
    write_atomically(link, b"new")
    assert link.is_symlink() and (tmp_path / "second").is_symlink()
    assert target.read_bytes() == b"new" and list(target.parent.iterdir()) == [target]
    assert dangling or target.stat().st_mode & 0o777 == 0o640


@unix
def test_what_no_file_can_be_written_over_is_named(tmp_path):
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    names = {
        "circle": "symbolic links",
        "folder": "directory",
        "pipe": "not a regular",
        "link": "not a",
    }
    before = set(tmp_path.iterdir())
    for name, message in {**names, "x" * 300: "too long"}.items():
        with pytest.raises(OSError, match=message) as raised:
            write_atomically(tmp_path / name, b"new")
        assert raised.value.filename == str(tmp_path / name)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["x" * 255, "\u00e9" * 127 + "x"], ids=["ASCII", "UTF-8"])
def test_a_name_may_be_as_long_as_the_system_takes_it(tmp_path, name):
    write_atomically(tmp_path / name, b"new")
    assert [path.name for path in tmp_path.iterdir()] == [name]


_KILLED = """
import os, signal, sys
from pathlib import Path
from hypernoise.hypernoise_core.atomic_file import atomic_writer
with atomic_writer(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@unix
def test_temporary_files_are_removed_also_where_a_link_leads(tmp_path):
    """There none but those of the link's own file, which others may be writing beside."""
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    elsewhere.mkdir()
    (run / "linked").symlink_to(elsewhere / "target")
    for path in (run / ("x" * 255), run / "linked"):
        killed = subprocess.run([sys.executable, "-c", _KILLED, path])
        assert killed.returncode == -signal.SIGKILL
    assert len(list(run.glob(".*.part"))) == len(list(elsewhere.glob(".*.part"))) == 1
    with atomic_writer(elsewhere / "other") as file:
        file.write(b"whole")
        remove_temporary_files(run)
    assert [path.name for path in run.iterdir()] == ["linked"]
    assert [path.name for path in elsewhere.iterdir()] == ["other"]


def test_temporary_files_that_another_process_may_be_writing_stay(tmp_path):
    with atomic_writer(tmp_path / "other") as file:
        file.write(b"whole")
        remove_temporary_files(tmp_path, older_than=60)
    assert (tmp_path / "other").read_bytes() == b"whole"


def test_a_file_is_on_the_disk_before_it_takes_the_place_of_another(tmp_path, monkeypatch):
    """Else a machine that loses its power may have neither."""
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, f=real: (calls.append(n), f(*a))[1])
    write_atomically(tmp_path / "a", b"new")
    assert calls == ["fsync", "replace"]
