"""Links in a folder may only lead to files inside it."""

from __future__ import annotations

from pathlib import Path


def is_inside(file: Path, root: Path) -> bool:
    """Whether the file is inside a folder, or is a blob of the same Hugging Face cache entry.

    The cache stores files in models--NAME/blobs or datasets--NAME/blobs, and links to them in
    snapshots/REVISION next to it.

    Args:
        file, root: resolved paths, see `Path.resolve`.
    """
    if file.is_relative_to(root):
        return True
    for folder in (root, *root.parents):
        if folder.name == "snapshots" and folder.parent.name.startswith(_CACHED):
            return file.parent == folder.with_name("blobs").resolve()
    return False


_CACHED = ("models--", "datasets--")
