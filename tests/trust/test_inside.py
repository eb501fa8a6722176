"""Runs the tests of inside/ in a process of their own, where `nodes` is ComfyUI's module."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hypernoise.tests.comfyui.conftest import INSIDE, REPOSITORY
from hypernoise.tests.comfyui.fetch_comfyui import comfyui_path
from hypernoise.tests.comfyui.server import environment
from hypernoise.tests.trust.conftest import TALLY_FILE, add_tallies


@pytest.mark.slow
@pytest.mark.comfyui
def test_inside_comfyui(tmp_path: Path):
    folder, counted = Path(__file__).with_name("inside"), tmp_path / "tally.json"
    options = ["-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'inside'}"]
    own = {INSIDE: str(comfyui_path()), TALLY_FILE: str(counted), "PYTEST_ADDOPTS": ""}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", str(folder), *options],
        cwd=REPOSITORY,
        env={**environment(), **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(result.stdout[-20000:])
    assert result.returncode == 0, os.linesep.join(result.stdout.splitlines()[-15:])
    add_tallies(counted)
