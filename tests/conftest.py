"""Fixtures that several folders of tests share."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def reference_folder() -> Path:
    """The recorded cases of the reference implementation, one folder each.

    `HYPERNOISE_REFERENCE` names them; by default shared/reference beside the repository.
    """
    default = ROOT.parent / "shared" / "reference"
    folder = Path(os.environ.get("HYPERNOISE_REFERENCE") or default)
    if not folder.is_dir():
        pytest.skip(f"no reference cases in {folder}; set HYPERNOISE_REFERENCE to their folder")
    return folder
