"""Runs tests that import ComfyUI in a process of their own, where `nodes` is ComfyUI's module."""

import os
import subprocess
import sys
from pathlib import Path

from hypernoise.tests.comfyui.conftest import INSIDE, REPOSITORY
from hypernoise.tests.comfyui.fetch_comfyui import comfyui_path
from hypernoise.tests.comfyui.server import environment


def run_inside(tests: Path, temporary: Path, **variables: str) -> None:
    """Raises AssertionError with the end of the output unless all of them pass.

    Args:
        tests: a file or folder.
        temporary: where they may write.
        variables: of the environment.
    """
    options = ["-q", "-p", "no:cacheprovider", f"--basetemp={temporary / 'inside'}"]
    own = {INSIDE: str(comfyui_path()), "PYTEST_ADDOPTS": "", **variables}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", str(tests), *options],
        cwd=REPOSITORY,
        env={**environment(), **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(result.stdout[-20000:])
    assert result.returncode == 0, os.linesep.join(result.stdout.splitlines()[-15:])
