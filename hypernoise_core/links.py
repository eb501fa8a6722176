"""Where links in a folder may lead: to what the folder holds itself."""

from __future__ import annotations

from pathlib import Path


def is_inside(file: Path, root: Path) -> bool:
    """Whether a folder holds the file, or is a snapshot of the Hugging Face cache that does.

    Such a cache has the files in models--NAME/blobs or datasets--NAME/blobs, and links to them in
    snapshots/REVISION beside it.

    Args:
        file, root: without links in them, as `Path.resolve` gives them.
    """
    if file.is_relative_to(root):
        return True
    for folder in (root, *root.parents):
        if folder.name == "snapshots" and folder.parent.name.startswith(_CACHED):
            return file.parent == folder.with_name("blobs").resolve()
    return False


_CACHED = ("models--", "datasets--")
