"""Runs the tests of inside/, and takes over what they have counted."""

from pathlib import Path

import pytest

from hypernoise.tests.comfyui.run_inside import run_inside
from hypernoise.tests.trust import tallies


@pytest.mark.slow
@pytest.mark.comfyui
def test_inside_comfyui(tmp_path: Path):
    counted = tmp_path / "tally.json"
    run_inside(Path(__file__).with_name("inside"), tmp_path, **{tallies.TALLY_FILE: str(counted)})
    tallies.add(counted.read_text())
