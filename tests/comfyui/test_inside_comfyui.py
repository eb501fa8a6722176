"""Runs the tests of inside/."""

from pathlib import Path

from hypernoise.tests.comfyui.run_inside import run_inside


def test_inside_comfyui(tmp_path: Path):
    run_inside(Path(__file__).with_name("inside"), tmp_path)
