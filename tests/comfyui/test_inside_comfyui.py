"""Runs the tests of inside/ in a process of their own, where `nodes` is ComfyUI's module."""

import os
import subprocess
import sys
from pathlib import Path

from hypernoise.tests.comfyui.conftest import INSIDE, REPOSITORY
from hypernoise.tests.comfyui.server import environment


def test_inside_comfyui(comfyui: Path, tmp_path: Path):
    folder = Path(__file__).with_name("inside")
    options = ["-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'inside'}"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", str(folder), *options],
        cwd=REPOSITORY,
        env={**environment(), INSIDE: str(comfyui), "PYTEST_ADDOPTS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(result.stdout[-20000:])
    assert result.returncode == 0, os.linesep.join(result.stdout.splitlines()[-15:])
