"""The record of a run: whole lines, whatever happens, and the same numbers in a tracker."""

import json
import math
import resource
import shutil
import sys
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hypernoise.tests import warm
from hypernoise.training.tracking import FILE, MetricsLog, read


@pytest.fixture
def log(tmp_path: Path) -> MetricsLog:
    return MetricsLog(tmp_path, "none", {})


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0})
    return found.Reload()


def test_metrics_come_back_as_they_were_written(log, tmp_path):
    log.write(1, {"loss": 0.1 + 0.2, "hps": torch.tensor(0.25)})
    log.write(1, {"evaluation/hps": -3}, kind="evaluation")
    assert read(tmp_path) == [
        {"step": 1, "kind": "train", "loss": 0.1 + 0.2, "hps": 0.25},
        {"step": 1, "kind": "evaluation", "evaluation/hps": -3.0},
    ]
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_numbers_that_json_does_not_know_are_valid_json_and_come_back(log, tmp_path):
    log.write(1, {"a": math.nan, "b": math.inf, "c": -math.inf})

    def refuse(constant: str):
        raise ValueError(f"{constant} is no JSON")

    json.loads((tmp_path / FILE).read_text(), parse_constant=refuse)
    row = read(tmp_path)[0]
    assert math.isnan(row["a"])
    assert (row["b"], row["c"]) == (math.inf, -math.inf)


def test_a_line_is_on_the_disk_when_write_returns(tmp_path):
    code = (
        "import os, pathlib, sys; from hypernoise.training.tracking import MetricsLog\n"
        "MetricsLog(pathlib.Path(sys.argv[1]), 'none', {}).write(7, {'loss': 1.5}); os._exit(1)"
    )
    assert warm.run(code, tmp_path).returncode == 1
    assert read(tmp_path) == [{"step": 7, "kind": "train", "loss": 1.5}]


def test_a_name_that_a_line_has_already_is_refused(log):
    with pytest.raises(ValueError, match="a metric cannot be named step"):
        log.write(1, {"step": 2.0})


def test_rewinding_drops_later_steps_and_a_half_line(log, tmp_path):
    for step in range(5):
        log.write(step, {"loss": step})
        log.write(step, {"evaluation/hps": step}, kind="evaluation")
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 1, "kind": "tr')
    assert len(read(tmp_path)) == 10
    again = MetricsLog(tmp_path, "none", {})
    again.rewind(2)
    again.write(3, {"loss": 30})
    assert [row["step"] for row in read(tmp_path)] == [0, 0, 1, 1, 2, 2, 3]
    assert read(tmp_path)[-1]["loss"] == 30


def test_a_damaged_line_is_named(log, tmp_path):
    log.write(1, {"loss": 1})
    with (tmp_path / FILE).open("a") as file:
        file.write("}{\n")
    for action in (lambda: read(tmp_path), lambda: log.rewind(1)):
        with pytest.raises(ValueError, match=f"line 2 of .*{FILE} is damaged"):
            action()


def test_a_full_disk_is_an_error_and_leaves_whole_lines(tmp_path):
    """A limit on the size of files stands for the disk: it too cuts a line in the middle."""
    log = MetricsLog(tmp_path, "none", {})
    log.write(1, {"loss": 1.0})
    before = (tmp_path / FILE).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
    try:
        with pytest.raises(OSError):
            log.write(2, {"loss": 2.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / FILE).read_bytes() == before
    log.write(3, {"loss": 3.0})
    assert [row["step"] for row in read(tmp_path)] == [1, 3]


def test_tensorboard_shows_what_the_file_holds(tmp_path):
    log = MetricsLog(tmp_path, "tensorboard", {"lr": 1e-3, "rewards": {"hps": 5.0}, "steps": None})
    for step in (1, 2):
        log.write(step, {"loss": 10.0 / step})
    log.write(2, {"evaluation/hps": 0.3}, kind="evaluation")
    Image.new("RGB", (30, 20), "red").save(tmp_path / "grid.jpg")
    log.picture(2, "evaluation/images", tmp_path / "grid.jpg")
    log.close()
    found = events(tmp_path)
    assert [(e.step, e.value) for e in found.Scalars("train/loss")] == [(1, 10.0), (2, 5.0)]
    assert found.Scalars("evaluation/hps")[0].value == pytest.approx(0.3)
    (image,) = found.Images("evaluation/images")
    assert (image.step, image.width, image.height) == (2, 30, 20)
    (settings,) = tmp_path.rglob("hparams.yml")
    assert "hps" in settings.read_text()


def test_tensorboard_forgets_what_a_resumed_run_does_again(tmp_path):
    log = MetricsLog(tmp_path, "tensorboard", {"lr": 1e-3})
    for step in range(5):
        log.write(step, {"loss": step})
    log.close()
    log = MetricsLog(tmp_path, "tensorboard", {"lr": 1e-3})
    log.rewind(2)
    log.write(3, {"loss": 30})
    log.close()
    found = [(e.step, e.value) for e in events(tmp_path).Scalars("train/loss")]
    assert found == [(0, 0), (1, 1), (2, 2), (3, 30)]
    assert len(list(tmp_path.rglob("hparams.yml"))) == 1


def test_a_tracker_that_fails_is_given_up_once_and_the_file_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # TensorBoard writes in a thread
    Image.new("RGB", (30, 20), "red").save(tmp_path / "grid.jpg")
    log = MetricsLog(tmp_path, "tensorboard", {})
    log.write(1, {"loss": 1})
    shutil.rmtree(tmp_path / "tensorboard")
    for step in (2, 3):
        log.write(step, {"loss": step})
        log.picture(step, "evaluation/images", tmp_path / "grid.jpg")
    log.close()
    assert capsys.readouterr().err.count("the tracker tensorboard failed") == 1
    assert [row["step"] for row in read(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "trackio"])
def test_a_missing_package_names_its_command_and_the_way_without(tracker, tmp_path, monkeypatch):
    monkeypatch.delattr(torch.utils, "tensorboard", raising=False)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    for name in (tracker, "tensorboardX"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=f"pip install {tracker}, or choose --tracker none"):
        MetricsLog(tmp_path, tracker, {})
