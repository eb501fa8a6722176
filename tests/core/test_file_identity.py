"""What a file is: its content, which the Hugging Face hub may have told already."""

import hashlib
import os
from pathlib import Path

import pytest

from hypernoise.hypernoise_core.file_identity import identity_of, published_sha256, sha256_of

TOLD = "ab" * 32


def test_names_and_contents_decide_and_neither_time_nor_place(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x").write_bytes(b"weights")
    os.utime(tmp_path / "b" / "x", ns=(5, 5))
    a, b = (identity_of({"x": tmp_path / folder / "x"}) for folder in ("a", "b"))
    assert a == b and len(a) == 16
    assert identity_of({"y": tmp_path / "a" / "x"}) != a
    (tmp_path / "y").write_bytes(b"more")
    both = {"x": tmp_path / "a" / "x", "y": tmp_path / "y"}
    assert identity_of(both) == identity_of(dict(reversed(both.items()))) != a
    (tmp_path / "a" / "x").write_bytes(b"Weights")
    assert identity_of({"x": tmp_path / "a" / "x"}) != a
    assert identity_of({}) != a


def test_a_content_is_read_anew_where_the_file_was_replaced(tmp_path):
    path = tmp_path / "x"
    for content in (b"one", b"two"):
        path.write_bytes(content)
        os.utime(path, ns=(5, int.from_bytes(content, "big")))
        assert sha256_of(path) == hashlib.sha256(content).hexdigest()


def test_the_hub_s_cache_calls_a_large_file_by_its_content(tmp_path):
    def snapshot(name: str, blob: str) -> Path:
        target, link = tmp_path / name / "blobs" / blob, tmp_path / name / "snapshots" / "model"
        for path in (target, link):
            path.parent.mkdir(parents=True)
        target.write_bytes(b"never read")
        link.symlink_to(target)
        return link

    first, second, other = (snapshot(*of) for of in (("a", TOLD), ("b", TOLD), ("c", "cd" * 32)))
    assert identity_of({"model": first}) == identity_of({"model": second})
    assert identity_of({"model": first}) != identity_of({"model": other})
    small = snapshot("d", "ab" * 20)  # small files are called by another hash: these are read
    copy = tmp_path / "model"
    copy.write_bytes(b"never read")
    assert identity_of({"model": small}) == identity_of({"model": copy})


@pytest.fixture
def download(tmp_path: Path) -> Path:
    """A file in a folder that the hub's client filled, with its record."""
    path = tmp_path / "transformer" / "model.safetensors"
    record = tmp_path / ".cache/huggingface/download/transformer/model.safetensors.metadata"
    for each in (path, record):
        each.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    record.write_text(f"c0ffee\n{TOLD}\n1000.5\n")
    os.utime(path, (1000, 1000))
    return path


def test_a_downloaded_folder_knows_its_files_until_they_are_replaced(download, tmp_path):
    known = identity_of({"model": download}, tmp_path)
    download.write_bytes(b"WEIGHTS")
    os.utime(download, (1001, 1001))  # within the client's tolerance: it counts as unchanged
    assert identity_of({"model": download}, tmp_path) == known
    os.utime(download, (2000, 2000))
    assert identity_of({"model": download}, tmp_path) == identity_of({"model": download}) != known
    assert published_sha256(download, tmp_path) == TOLD


@pytest.mark.parametrize("record", ["", "c0ffee", f"c0ffee\n{TOLD}\nsoon\n", "c0ffee\nW/x\n1\n"])
def test_a_record_that_tells_nothing_is_passed_over(download, tmp_path, record):
    (next((tmp_path / ".cache").rglob("*.metadata"))).write_text(record)
    assert identity_of({"model": download}, tmp_path) == identity_of({"model": download})
