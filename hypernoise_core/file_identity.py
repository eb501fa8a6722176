"""What a file or folder is, by its content: results are kept under it, and never taken for others.

Names are not enough: weights are replaced in place, and a name in a cache moves on to newer files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from .text_file import lines, read_text

_SHA256 = re.compile(r"[0-9a-f]{64}")
_RECORDS = Path(".cache", "huggingface", "download")  # in a folder that the hub's client filled
_DIGITS = 16


def identity_of(files: Mapping[str, Path], top: Path | None = None) -> str:
    """16 hexadecimal digits of the content of files and of what they are called.

    The content's hash of large files from the Hugging Face hub is known without reading them; the
    rest is read once in a process.

    Args:
        files: by the names under which they are used.
        top: the folder that a repository of the hub was downloaded to, where there is one.
    """
    digest = hashlib.sha256()
    for name in sorted(files):
        content = _known_sha256(files[name], top) or sha256_of(files[name])
        digest.update(f"{name}\0{content}\n".encode())
    return digest.hexdigest()[:_DIGITS]


def _known_sha256(path: Path, top: Path | None) -> str | None:
    if blob := _blob(path):
        return blob
    content, time = (None, 0.0) if top is None else _record(path, top)
    # The hub's client takes a file for changed by the same rule.
    return content if path.stat().st_mtime - 1 <= time else None


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content."""
    status = path.stat()
    return _sha256(path.resolve(), status.st_size, status.st_mtime_ns)


@cache
def _sha256(path: Path, size: int, time: int) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def published_sha256(path: Path, top: Path) -> str | None:
    """The SHA-256 that the hub published for a file when it was downloaded; only for large files.

    Args:
        top: the folder that the file's repository was downloaded to, if not to the cache.
    """
    return _blob(path) or _record(path, top)[0]


def _blob(path: Path) -> str | None:
    """The name in the hub's cache, where a large file is called by its SHA-256."""
    name = path.resolve().name
    return name if _SHA256.fullmatch(name) else None


def _record(path: Path, top: Path) -> tuple[str | None, float]:
    """SHA-256 and time of the download, from the record that the hub's client keeps of it."""
    record = top / _RECORDS / f"{path.relative_to(top).as_posix()}.metadata"
    if not record.is_file():
        return None, 0.0
    _, etag, time = (*lines(read_text(record)), "", "", "")[:3]  # commit, ETag, seconds
    try:
        return (etag, float(time)) if _SHA256.fullmatch(etag) else (None, 0.0)
    except ValueError:
        return None, 0.0
