"""Training through crashes, full disks, lost processes and damaged files: nothing is lost, and the
run that goes on ends as if nothing had happened."""

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from hypernoise.hypernoise_core.adapter import load_adapter
from hypernoise.tests import warm
from hypernoise.tests.trust.faults import CALLS
from hypernoise.tests.trust.runs import (
    LIGHT,
    PROMPTS,
    Finished,
    Started,
    differences,
    environment,
    files,
    fresh,
    record,
    start,
    state,
    train,
    write_task,
)
from hypernoise.training.checkpoints import Checkpoints
from hypernoise.training.tracking import FILE as METRICS
from hypernoise.training.tracking import read

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks runs")
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc, or mounts")


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """config.toml, prompts.txt, and the cache that all runs share."""
    return write_task(tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def reference(work) -> Path:
    """The run that nothing happens to."""
    assert train(work, "--save_dir", "reference").returncode == 0
    return work / "reference"


@pytest.fixture
def damaged(reference, tmp_path) -> Path:
    """A run that may be damaged, killed after update 3 of 4."""
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    for path in run.glob("checkpoints/*4.*"):
        path.unlink()
    return run


def newest(run: Path) -> Path | None:
    paths = Checkpoints(run / "checkpoints", 1).paths()
    return paths[-1] if paths else None


def step(run: Path) -> int:
    """The update of the newest checkpoint; 0: there is none."""
    path = newest(run)
    return int(path.stem.removeprefix("step_")) if path else 0


def contents(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in files(run)}


# kill -9


def test_kill_9_at_random_moments_loses_nothing(work, reference, tmp_path, scale, tally):
    seed = 20
    rng = random.Random(seed)
    counts = tally("kill -9 at random moments, then --resume")
    began = time.monotonic()
    assert train(work, "--save_dir", tmp_path / "timed").returncode == 0
    forked, alone = time.monotonic() - began, 12.0  # seconds that a run takes about
    arguments = ["--save_dir", "run", "--resume"]
    kills = 0
    while kills < scale(3, 10, 200):
        if kills % 10 == 9:
            log = tmp_path / "fresh.log"
            with fresh(work, "--config", "config.toml", *arguments, log=log) as process:
                try:
                    process.wait(rng.uniform(0.3, 1) * alone)
                except subprocess.TimeoutExpired:
                    process.kill()
            code, errors = process.wait(), log.read_text()
        else:
            started = start(work, *arguments)
            time.sleep(rng.uniform(0.05, 0.9) * forked)
            started.send(signal.SIGKILL)
            code, errors = started.wait().returncode, started.errors()
        assert code in (0, -signal.SIGKILL), f"kill {kills}, seed {seed}: {errors}"
        kills += code != 0
        if code:
            counts.count(_phase(work / "run", errors))
        else:
            _assert_as(reference, work / "run", counts, f"kill {kills}, seed {seed}")
            shutil.rmtree(work / "run")
    assert train(work, *arguments).returncode == 0
    _assert_as(reference, work / "run", counts, f"kill {kills}, seed {seed}")
    shutil.rmtree(work / "run")


def _phase(run: Path, errors: str) -> str:
    if list(run.rglob("*.part")):
        return "killed in a write"
    return "killed in training" if "training: " in errors else "killed at the start"


def _assert_as(reference: Path, run: Path, counts, when: str) -> None:
    found = differences(run, reference)
    counts.count("runs ended as the uninterrupted one", 0 if found else 1)
    if found:
        counts.count("runs ended otherwise", lost=True)
    assert not found, f"{when}: {found}"


@linux
def test_kill_9_at_every_call_that_changes_a_file_loses_nothing(work, tmp_path, scale, tally):
    """In the middle of each write, and before each file is opened, synced, renamed or deleted."""
    counts = tally("kill -9 at the n-th file operation of a run, then --resume")
    short = ["--steps", "2", "--keep_last", "1"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train(work, *short, "--save_dir", whole, first=_die(whole, 0)).returncode == 0
    calls = int((tmp_path / CALLS).read_text())
    assert calls > 60
    for call in range(1, calls + 1, scale(24, 9, 1)):
        killed = train(work, *short, "--save_dir", run, first=_die(run, call))
        assert killed.returncode == -signal.SIGKILL, f"call {call}: {killed.errors}"
        halves = len(list(run.rglob("*.part")))
        result = train(work, *short, "--save_dir", run, "--resume")
        assert result.returncode == 0, f"call {call}: {result.errors}"
        found = differences(run, whole)
        counts.count("resumed to the same bits" if not found else "not the same", lost=bool(found))
        assert not found, f"call {call} of {calls} ({halves} files half-written): {found}"
        shutil.rmtree(run)


@linux
def test_kill_9_at_every_call_that_changes_the_cache_loses_nothing(
    work, reference, tmp_path, scale, tally
):
    counts = tally("kill -9 at the n-th file operation while prompts are encoded, then --resume")
    cache, run = tmp_path / "cache", tmp_path / "run"
    arguments = ["--cache_dir", cache, "--save_dir", run, "--resume"]
    assert train(work, *arguments, first=_die(cache, 0)).returncode == 0
    assert not differences(run, reference)
    calls = int((tmp_path / CALLS).read_text())
    assert calls > 10
    for call in range(calls // 3, calls + 1, scale(calls // 2, calls // 5, 1)):
        shutil.rmtree(cache), shutil.rmtree(run)
        killed = train(work, *arguments, first=_die(cache, call))
        assert killed.returncode == -signal.SIGKILL, f"call {call}: {killed.errors}"
        result = train(work, *arguments)
        assert result.returncode == 0, f"call {call}: {result.errors}"
        found = differences(run, reference)
        counts.count("resumed to the same bits" if not found else "not the same", lost=bool(found))
        assert not found, f"call {call} of {calls}: {found}"


def _die(folder: Path, call: int) -> str:
    return f"from hypernoise.tests.trust.faults import *; die_at_call({str(folder)!r}, {call})"


def test_going_on_with_a_finished_run_changes_nothing(work, reference, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    assert train(work, "--save_dir", run, "--resume").returncode == 0
    assert not differences(run, reference)


def test_a_schedule_that_another_length_changes_is_told(work, reference, tmp_path, tally):
    run = tmp_path / "run"
    shutil.copytree(reference, run)  # cosine, 4 updates
    longer = train(work, "--save_dir", run, "--resume", "--steps", "8")
    assert longer.returncode == 0 and longer.errors.count("warning: the ") == 1, longer.errors
    assert (
        "warning: the cosine schedule was planned for 4 updates and is now for 8 updates: after "
        "update 4 the learning rate is 0.0005 where it would have been 0\n"
    ) in longer.errors
    (rate,) = [line["lr"] for line in read(run) if line["step"] == 5 and "lr" in line]
    assert rate == pytest.approx(0.0005)
    again = train(work, "--save_dir", run, "--resume", "--steps", "8")
    limited = train(work, "--save_dir", run, "--resume", "--steps=8", "--max_seconds=1000")
    assert "schedule" not in again.errors
    assert "for 8 updates and is now for 8 updates or 1000 seconds" in limited.errors
    arguments = ["--save_dir", tmp_path / "constant", "--schedule", "constant", "--steps"]
    assert train(work, *arguments, "1").returncode == 0
    constant = train(work, *arguments, "2", "--resume")
    assert constant.returncode == 0 and "schedule" not in constant.errors
    tally("a schedule of another length").count("told")


def test_ctrl_c_while_a_run_starts_ends_it_in_one_line(work, tmp_path, tally):
    first = (
        "import os, signal, hypernoise.training.parts as parts\n"
        # Where tests are a shell's background job, their processes are born deaf to it.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "parts.load_pipeline = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)\n"
    )
    result = train(work, "--save_dir", tmp_path / "run", first=first)
    assert result.returncode == 130 and result.message == "hypernoise: interrupted"
    tally("Ctrl-C while a run starts").count("one line")


# The disk


@contextmanager
def small_disk(path: Path, options: str) -> Iterator[None]:
    """A file system of its own; the test is skipped where none may be mounted."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine may not mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    """As after an error of the disk, also where files are open: a read-only mount on top of it."""
    subprocess.run(["mount", "--bind", disk, disk], check=True)
    try:
        remount(disk, "bind,ro")
        yield
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def remount(path: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(path)], check=True)


def assert_whole(run: Path, halves: bool = False) -> None:
    """All checkpoints and adapters can be read, and nothing half-written lies about.

    Args:
        halves: a file that is under way may lie there; where nothing can be deleted it has to.
    """
    for path in Checkpoints(run / "checkpoints", 1).paths():
        torch.load(path, weights_only=True)
    for path in run.rglob("*.safetensors"):
        load_adapter(path)
    assert halves or not list(run.rglob("*.part"))


@linux
def test_a_full_disk_loses_nothing(work, reference, tmp_path, scale, tally):
    """Whatever the file at which it is full; config.toml and metrics.jsonl too."""
    counts = tally("the disk is full, at different sizes; then --resume")
    disk = tmp_path / "disk"
    keep_all = ["--keep_last", "9", "--save_dir", disk / "run"]
    whole = tmp_path / "whole"
    assert train(work, "--keep_last", "9", "--save_dir", whole).returncode == 0
    pages = sum(-(-path.stat().st_size // 4096) for path in whole.rglob("*") if path.is_file())
    with small_disk(disk, "size=64m"):
        for size in range(2, pages, pages // scale(2, 4, 40)):
            remount(disk, f"size={4 * size}k")
            result = train(work, *keep_all, "--resume")
            if result.returncode:
                assert result.returncode == 2, result.errors
                assert "No space left on device" in result.message, result.errors
                assert f"{disk}/run" in result.message and "free some space" in result.message
            else:
                assert "warning: no checkpoint at update" in result.errors
            end = "ended with a message" if result.returncode else "went on with a warning"
            assert_whole(disk / "run")
            remount(disk, "size=64m")
            assert train(work, *keep_all, "--resume").returncode == 0
            found = [d for d in differences(disk / "run", whole) if not d.startswith("files")]
            resumed = "other bits" if found else "the same bits"
            counts.count(f"{end} and resumed to {resumed}", lost=bool(found))
            assert not found, f"{size} pages: {found}"
            shutil.rmtree(disk / "run")


@linux
@pytest.mark.parametrize("file", ["config.toml", "cache", "tensorboard"])
def test_a_full_disk_is_named(work, reference, tmp_path, scale, tally, file):
    """Before the first update."""
    if not scale(0, 1, 1) and file == "tensorboard":
        pytest.skip("levels short and long")
    disk, run = tmp_path / "disk", tmp_path / "run"
    arguments = ["--save_dir", disk / "run" if file != "cache" else run]
    arguments += ["--cache_dir", disk] if file == "cache" else []
    arguments += ["--tracker", "tensorboard"] if file == "tensorboard" else []
    with small_disk(disk, f"size={8 if file == 'tensorboard' else 4}k"):
        if file == "config.toml":
            (disk / "filler").write_bytes(bytes(4096))
        result = train(work, *arguments)
        (message,) = [line for line in result.errors.splitlines() if line[:12] == "hypernoise: "]
        assert "No space left on device" in message and str(disk) in message
        assert "Traceback" not in result.errors or file == "tensorboard"  # from its own thread
        assert result.returncode == 2 and not list(disk.rglob("*.part"))
        remount(disk, "size=64m")
        result = train(work, *arguments, "--resume")
        assert result.returncode == 0, result.errors
        run = disk / "run" if file != "cache" else run
        assert not differences(run, reference, same_files=False)
    tally("the disk is full at the start").count("ended with a message")


def test_a_limit_on_the_size_of_files_is_reported(work, reference, tmp_path, tally):
    """Also where no file system can be mounted."""
    size = newest(reference).stat().st_size
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size // 2},) * 2)\n"
    run = tmp_path / "run"
    result = train(work, "--save_dir", run, first=limit)
    assert result.returncode == 2 and "checkpoints" in result.message, result.errors
    assert result.errors.count("warning: no checkpoint at update") >= 3
    assert_whole(run)
    assert train(work, "--save_dir", run, "--resume").returncode == 0
    assert not differences(run, reference)
    tally("files may not grow").count("ended with a message")


@linux
def test_a_folder_that_cannot_be_written_is_refused_at_once(work, tmp_path, tally):
    counts = tally("an output folder that cannot be written")
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below" / "run"):
        result = train(work, "--save_dir", path)
        assert result.returncode == 2 and f"{tmp_path / 'file'} is a file" in result.message
        counts.count("refused")
    assert (tmp_path / "file").read_text() == "mine"
    with small_disk(tmp_path / "disk", "ro"):
        result = train(work, "--save_dir", tmp_path / "disk" / "run")
        assert result.returncode == 2 and "is not writable" in result.message
        assert "--save_dir" in result.message and "encoding" not in result.errors
        counts.count("refused")
        arguments = ["--save_dir", tmp_path / "run", "--cache_dir", tmp_path / "disk" / "cache"]
        result = train(work, *arguments)
        assert result.returncode == 2 and "is not writable" in result.message
        assert "--cache_dir" in result.message and "encoding" not in result.errors
        assert not (tmp_path / "run").exists()
        counts.count("refused")


@linux
def test_a_cache_that_cannot_be_written_serves_where_it_holds_all(work, tmp_path, tally):
    disk = tmp_path / "disk"
    with small_disk(disk, "size=8m"):
        result = train(work, "--save_dir", tmp_path / "first", "--cache_dir", disk)
        assert result.returncode == 0, result.errors
        with read_only(disk):
            result = train(work, "--save_dir", tmp_path / "second", "--cache_dir", disk)
        assert result.returncode == 0, result.errors
    tally("a full cache that cannot be written").count("worked")


@linux
def test_a_disk_that_becomes_read_only_loses_nothing(work, reference, tmp_path, tally):
    disk = tmp_path / "disk"
    with small_disk(disk, "size=64m"):
        arguments = ["--save_dir", disk / "a" / "b" / "run"]  # parents are made
        started = start(work, *arguments, first=SLOW)
        started.wait_until(lambda: step(disk / "a" / "b" / "run") >= 2)
        with read_only(disk):
            result = started.wait()
        assert result.returncode == 2 and "Read-only file system" in result.message
        assert f"{disk}/a/b/run" in result.message and "--resume continues" in result.message
        assert_whole(disk / "a" / "b" / "run", halves=True)
        assert train(work, *arguments, "--resume").returncode == 0
        assert_whole(disk / "a" / "b" / "run")
        assert not differences(disk / "a" / "b" / "run", reference)
    tally("the disk becomes read-only under way").count("ended with a message, resumed")


def test_a_run_under_way_is_not_touched_by_another(work, reference, tmp_path, tally):
    run = tmp_path / "run"
    started = start(work, "--save_dir", run, first=SLOW)
    started.wait_until(lambda: step(run) >= 1)
    result = train(work, "--save_dir", run, "--resume")
    assert result.returncode == 2 and result.message.startswith(f"hypernoise: {run}: another")
    assert started.poll() is None, "the first one was over too soon to show anything"
    assert started.wait().returncode == 0
    assert not differences(run, reference)
    tally("a second process goes on with a run that is under way").count("refused")


SLOW = """
import time, hypernoise.training.trainer as trainer
update = trainer.Trainer._update
trainer.Trainer._update = lambda self: (time.sleep(0.25), update(self))[1]
"""


# The prompts


def test_prompts_may_change_while_a_run_is_under_way_but_not_before_it_goes_on(
    work, reference, tmp_path, tally
):
    counts = tally("the prompt file is changed, replaced, cut short or deleted")
    task = write_task(tmp_path / "task", cache_dir=str(work / "cache"))
    file, run = task / "prompts.txt", task / "run"
    other = task / "other.txt"
    other.write_text("\n".join(f"{prompt} and a square" for prompt in PROMPTS))
    changes = [
        lambda: file.write_text("\n".join([*PROMPTS, "a star"])),
        lambda: os.replace(other, file),
        lambda: file.write_text(PROMPTS[0][:-3]),
        file.unlink,
    ]
    same_task = ["--task", str(file), "--save_dir", run]
    started = start(task, *same_task, first=SLOW)
    started.wait_until(lambda: step(run) >= 1)
    for change in changes:
        change()
        time.sleep(0.1)
    assert started.wait().returncode == 0
    assert record(run) == record(reference)
    counts.count("no effect under way", len(changes))
    newest(run).unlink()  # as if it had ended there
    before = contents(run)
    changed = {
        "one more": "\n".join([*PROMPTS, "a star"]),
        "one letter": "\n".join(PROMPTS).replace("two blue squares", "two blue squared"),
        "held out": "\n".join(PROMPTS).replace(held_out(), "a star"),
        "cut short": "\n".join(PROMPTS)[:-30],
        "empty": "",
        "gone": None,
    }
    for name, content in changed.items():
        if content is None:
            file.unlink()
        else:
            file.write_text(content)
        result = train(task, *same_task, "--resume")
        assert result.returncode == 2, name
        told = {"empty": "contains no prompts", "gone": "prompts.txt"}
        assert told.get(name, "with SHA-256") in result.message, result.message
        assert contents(run) == before, name
        counts.count("refused at --resume")
    file.write_text("\n".join(PROMPTS))
    result = train(task, *same_task, "--resume")
    assert result.returncode == 0, result.errors
    assert record(run) == record(reference)
    counts.count("resumed with the old prompts")


def held_out() -> str:
    """A prompt of the evaluation, whose prompts lie at equal distances from the first on."""
    return PROMPTS[0]


# The tracker

WANDB = """
import sys, types
wandb, config = types.ModuleType("wandb"), types.SimpleNamespace(update=lambda *_, **__: None)
class Run:
    def log(self, values, step=None, **_):
        {log}
    def finish(self): {finish}
def init(**_):
    {init}
    return Run()
wandb.init, wandb.config, wandb.Image, wandb.Run = init, config, lambda image, **_: image, Run
wandb.__version__ = "0.99"
sys.modules["wandb"] = wandb
"""


def wandb(init: str = "pass", log: str = "pass", finish: str = "pass") -> str:
    """Stands in for the package, which needs an account."""
    return WANDB.format(init=init, log=log, finish=finish)


REFUSED = "raise ConnectionRefusedError(111, 'Connection refused')"


def test_a_tracker_that_does_not_start_is_named(work, reference, damaged, tally):
    before = record(damaged)
    for name, first, message in [
        ("wandb", "", "pip install wandb"),
        ("tensorboard", "import sys; sys.modules['tensorboard'] = None\n", "pip install tens"),
        ("wandb", wandb(init=REFUSED), "WANDB_MODE=offline"),
        ("wandb", wandb(init="raise RuntimeError('api_key not configured')"), "--tracker none"),
    ]:
        arguments = ["--save_dir", damaged, "--resume", "--tracker", name]
        result = train(work, *arguments, first=first)
        assert result.returncode == 2 and message in result.message
        assert f"--tracker {name}" in result.message
        assert record(damaged) == before
        tally("a tracker that does not start").count("refused")
    assert train(work, "--save_dir", damaged, "--resume").returncode == 0
    assert not differences(damaged, reference)


def test_a_tracker_that_fails_under_way_does_not_end_the_run(
    work, reference, tmp_path, scale, tally
):
    faults = [{"log": "if step == 3: " + REFUSED}, {"finish": REFUSED}, {"log": "values['gone']"}]
    for number, fault in enumerate(faults[:: scale(3, 1, 1)]):
        run = tmp_path / f"run{number}"
        arguments = ["--save_dir", run, "--tracker", "wandb"]
        result = train(work, *arguments, first=wandb(**fault))
        assert result.returncode == 0, result.errors
        assert "the tracker wandb failed" in result.errors and METRICS in result.errors
        assert not differences(run, reference)
        tally("a tracker that fails under way").count("said, the run went on")


# Rewards

REWARD = """
import torch
from hypernoise.hypernoise_core.rewards.redness import Redness
score_batch, calls = Redness.score_batch, 0
def faulty(self, batch, prompts):
    global calls
    calls += 1
    scores = score_batch(self, batch, prompts)
    if {when}:
        {fault}
    return scores
Redness.score_batch = faulty
"""
NAN = "scores = scores * float('nan')"


def reward(fault: str, when: str = "True") -> str:
    """A reward that does so at some of its calls: one for each batch, and three and then two for
    each evaluation."""
    return REWARD.format(fault=fault, when=when)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("scores = scores[:, None]", "the reward redness gave scores"),
        ("scores = scores.sum()", "the reward redness gave scores"),
        (
            "raise RuntimeError('no such kernel')",
            "after update 2: the reward redness failed with RuntimeError: no such kernel",
        ),
        (
            "raise OSError(5, 'Input/output error')",
            "after update 2: the reward redness failed with OSError",
        ),
        (
            "raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')",
            "out of memory after update 2: the reward redness ran out of memory: CUDA",
        ),
    ],
)
@pytest.mark.parametrize(
    "when", [pytest.param("calls == 6", id="update"), pytest.param("calls >= 4", id="evaluation")]
)
def test_a_reward_that_fails_is_named_and_nothing_is_lost(
    work, reference, tmp_path, scale, tally, fault, message, when
):
    """No checkpoint was due: the run leaves one of its last good update."""
    in_evaluation = when == "calls >= 4"
    if in_evaluation and "Error(" not in fault:
        pytest.skip("an evaluation takes what training has taken")
    if not scale(0, 1, 1) and ("OSError" in fault or "sum()" in fault):
        pytest.skip("levels short and long")
    run = tmp_path / "run"
    arguments = ["--save_dir", run, "--save_every", "1000"]
    result = train(work, *arguments, first=reward(fault, when))
    assert result.returncode == 2 and message in result.message, result.errors
    assert "--resume continues from" in result.message and step(run) == 2
    assert train(work, *arguments, "--resume").returncode == 0
    found = differences(run, reference, same_files=False)
    place = "an evaluation" if in_evaluation else "an update"
    tally(f"a reward fails in {place}").count("named, resumed to the same bits", lost=bool(found))
    assert not found


def test_batches_without_a_number_are_left_out_and_counted(work, tmp_path, tally):
    run = tmp_path / "run"
    arguments = ["--save_dir", run, "--log_every", "0"]
    result = train(work, *arguments, first=reward(NAN, "calls == 3"))
    assert result.returncode == 0, result.errors
    rows = record(run)
    assert [float(row["skipped"]) > 0 for row in rows] == [False, False, True, True]
    assert [row["images"] for row in rows].count("0.0") == 1
    adapter = load_adapter(run / "hypernoise.safetensors")
    assert all(p.isfinite().all() for p in adapter.parameters())
    tally("a reward gives NaN now and then").count("left out and counted")


def test_an_evaluation_without_a_number_is_not_the_best(work, reference, tmp_path, tally):
    run = tmp_path / "run"
    result = train(work, "--save_dir", run, first=reward(NAN, "calls == 4"))
    assert result.returncode == 0, result.errors
    assert load_adapter(run / "best.safetensors").metadata.training_steps == 4
    tally("a reward gives NaN in an evaluation").count("not taken for the best")


def test_a_run_that_only_gets_nan_ends(work, tmp_path, tally):
    run = tmp_path / "run"
    arguments = ["--save_dir", run, "--steps", "14", "--log_every", "0", "--save_every", "1000"]
    fewer = "import hypernoise.training.trainer as trainer; trainer.MAX_SKIPPED = 8\n"
    result = train(work, *arguments, first=fewer + reward(NAN, "calls > 2"))
    assert result.returncode == 2 and "scores of redness are not finite" in result.message
    assert step(run) == 10 and "--resume continues" in result.message
    assert state(run)["skipped"] >= 8
    result = train(work, *arguments, "--resume", first=fewer)
    assert result.returncode == 0, result.errors
    tally("a reward gives only NaN").count("ended with a message, resumed")


# Processes


def start_two(work: Path, *arguments: object, first: str = "") -> list[Started]:
    """Two processes of one run, without a launcher."""
    return [start(work, *arguments, first=first, **place) for place in warm.places(2)]


@pytest.fixture(scope="module")
def reference_of_two(work) -> Path:
    ended = [p.wait() for p in start_two(work, "--save_dir", "two")]
    assert [result.returncode for result in ended] == [0, 0], ended[0].errors
    return work / "two"


@pytest.mark.parametrize("dies", [0, 1])
def test_a_process_that_dies_ends_the_run_of_the_other(
    work, reference_of_two, tmp_path, scale, tally, dies
):
    if not scale(dies, 1, 1):
        pytest.skip("levels short and long")
    run = tmp_path / "run"
    ranks = start_two(work, "--save_dir", run, first=SLOW)
    ranks[dies].wait_until(lambda: step(run) >= 2)
    ranks[dies].send(signal.SIGKILL)
    _assert_other_ends(ranks, dies)
    _assert_two_go_on(work, run, reference_of_two)
    tally("one of two processes is killed").count("the other ended, resumed to the same bits")


def test_a_process_that_hangs_ends_the_run_of_the_other(work, reference_of_two, tmp_path, tally):
    """In minutes, which are seconds here."""
    first = (
        "import datetime, hypernoise.training.processes as processes\n"
        "processes.IN_TRAINING = datetime.timedelta(seconds=5)\n"
    )
    run = tmp_path / "run"
    ranks = start_two(work, "--save_dir", run, first=first + SLOW)
    ranks[0].wait_until(lambda: step(run) >= 2)
    ranks[1].send(signal.SIGSTOP)
    try:
        _assert_other_ends(ranks, 1)
    finally:
        ranks[1].send(signal.SIGKILL)
        ranks[1].wait()
    _assert_two_go_on(work, run, reference_of_two)
    tally("one of two processes hangs").count("the other ended, resumed to the same bits")


def _assert_other_ends(ranks: list[Started], lost: int) -> None:
    result = ranks[1 - lost].wait(60)
    assert result.returncode == 2, result.errors
    assert "another process of this run has died or hangs" in result.message
    assert "--resume continues" in result.message


def _assert_two_go_on(work: Path, run: Path, reference: Path) -> None:
    assert_whole(run)
    ended = [p.wait() for p in start_two(work, "--save_dir", run, "--resume")]
    assert [result.returncode for result in ended] == [0, 0], ended[0].errors
    assert not differences(run, reference)


@linux
@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_below_torchrun(
    work, reference_of_two, tmp_path, scale, tally
):
    if not scale(0, 1, 1):
        pytest.skip("takes half a minute: levels short and long")
    run, slow = tmp_path / "run", tmp_path / "slow.py"
    slow.write_text(f"{LIGHT}{SLOW}from hypernoise.training.cli import main; main()")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(slow)]
    arguments = ["train", "--config", "config.toml", "--save_dir", str(run)]
    process = subprocess.Popen(
        [sys.executable, *launcher, *arguments],
        cwd=work,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while step(run) < 2:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(ranks[1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode
    assert "another process of this run has died or hangs" in errors
    _assert_two_go_on(work, run, reference_of_two)
    tally("one of two processes is killed").count("the other ended, resumed to the same bits")


# Damaged files


class _Runs:
    """Unpickled as usual, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return open, (str(self.file), "w")


def _cut(path: Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))


def _flip_a_bit(path: Path) -> None:
    """In the numbers of a tensor: torch would not see it."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        largest = max(file.infolist(), key=lambda part: part.file_size)
    content[largest.header_offset + 300 + largest.file_size // 2] ^= 4
    path.write_bytes(content)


def _zip_that_runs(path: Path, marker: Path) -> None:
    """What torch.save makes, with another pickle in it."""
    torch.save({}, path)
    with zipfile.ZipFile(path) as file:
        parts = {part: file.read(part) for part in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, content in parts.items():
            bad = name.endswith("data.pkl")
            file.writestr(name, pickle.dumps(_Runs(marker), protocol=2) if bad else content)


def _without(path: Path, key: str) -> None:
    torch.save({k: v for k, v in torch.load(path).items() if k != key}, path)


def _with(path: Path, **changes: object) -> None:
    torch.save(torch.load(path) | changes, path)


CHECKPOINTS = {
    "empty": lambda path, _: path.write_bytes(b""),
    "cut short": lambda path, _: _cut(path, 0.7),
    "cut to its head": lambda path, _: _cut(path, 0.01),
    "garbage": lambda path, _: path.write_bytes(random.Random(0).randbytes(5000)),
    "one bit": lambda path, _: _flip_a_bit(path),
    "a pickle that runs code": lambda path, marker: path.write_bytes(pickle.dumps(_Runs(marker))),
    "a zip that runs code": _zip_that_runs,
    "a list": lambda path, _: torch.save([1, 2], path),
    "no optimizer": lambda path, _: _without(path, "optimizer"),
    "no fingerprint": lambda path, _: _without(path, "fingerprint"),
    "no evaluations": lambda path, _: _without(path, "evaluations"),
    "other weights": lambda path, _: _with(path, adapter={"weight": torch.ones(2)}),
    "step is a text": lambda path, _: _with(path, step="three"),
    "random is no tensor": lambda path, _: _with(path, random=[1]),
}


def test_a_damaged_checkpoint_is_named(work, reference, damaged, tmp_path, scale, tally):
    counts = tally("a damaged checkpoint, or one that runs code")
    marker, path = tmp_path / "ran", newest(damaged)
    whole = path.read_bytes()
    for name in list(CHECKPOINTS)[:: scale(2, 1, 1)]:
        path.write_bytes(whole)
        CHECKPOINTS[name](path, marker)
        before = contents(damaged)
        result = train(work, "--save_dir", damaged, "--resume")
        assert not marker.exists(), f"{name}: code in the checkpoint was run"
        assert result.returncode == 2 and str(path) in result.message, f"{name}: {result.errors}"
        assert "Delete it to resume from the one before it" in result.message, name
        assert contents(damaged) == before, name
        counts.count("named, nothing changed")
    path.unlink()
    assert train(work, "--save_dir", damaged, "--resume").returncode == 0
    assert not differences(damaged, reference)
    tally("the newest checkpoint is deleted").count("resumed from the one before to the same bits")


def test_a_damaged_line_of_metrics_is_named(work, reference, damaged, scale, tally):
    """In the middle; a last line that a crash cut short is none."""
    file = damaged / METRICS
    lines = file.read_text().splitlines(keepends=True)
    bad = ['{"step": 2, "ki', "[]", '{"step": "2", "kind": "train"}', "\xff\xfe", "null"]
    for line in bad[:: scale(2, 1, 1)]:
        file.write_text("".join([*lines[:2], line + "\n", *lines[2:]]), encoding="latin-1")
        result = train(work, "--save_dir", damaged, "--resume")
        assert result.returncode == 2, f"{line}: {result.errors}"
        assert f"line 3 of {file} is damaged" in result.message
        assert "delete that line" in result.message
        tally("a damaged line of metrics.jsonl").count("named")
    file.write_text("".join(lines) + '{"step": 3, "kin')
    assert train(work, "--save_dir", damaged, "--resume").returncode == 0
    assert not differences(damaged, reference)
    tally("half a line at the end of metrics.jsonl").count("resumed without it")


def test_what_a_run_can_write_anew_it_does(work, reference, damaged, tally):
    counts = tally("config.toml, the adapter or the report of a run are damaged or gone")
    (damaged / "config.toml").write_bytes(random.Random(0).randbytes(500))
    (damaged / "hypernoise.safetensors").write_bytes(b"garbage")
    (damaged / "report.html").unlink()
    shutil.rmtree(damaged / "evaluations")
    result = train(work, "--save_dir", damaged, "--resume")
    assert result.returncode == 0, result.errors
    assert [d for d in differences(damaged, reference) if "files" not in d] == []
    counts.count("written anew", 4)


def test_a_config_that_is_garbage_is_named(work, damaged, tally):
    (damaged / "config.toml").write_bytes(random.Random(0).randbytes(500))
    config = str(damaged / "config.toml")
    result = train(work, "--config", config, "--save_dir", damaged, "--resume")
    assert result.returncode == 2 and f"{config} is not a valid TOML file" in result.message
    tally("a config that is garbage").count("named")


def test_a_best_adapter_that_is_gone_is_said(work, reference, damaged, tally):
    (damaged / "best.safetensors").unlink()
    result = train(work, "--save_dir", damaged, "--resume")
    assert result.returncode == 0, result.errors
    assert "best.safetensors is missing" in result.errors
    assert (damaged / "best.safetensors").is_file()
    tally("best.safetensors is missing").count("said, written at the next evaluation")


def test_a_damaged_shard_of_the_cache_is_named(work, reference, damaged, tmp_path, scale, tally):
    cache = tmp_path / "cache"
    shutil.copytree(work / "cache", cache)
    (shard, *_) = sorted(cache.rglob("*.safetensors"))
    content = shard.read_bytes()
    header = json.dumps({"__metadata__": {"prompts": "[1"}}).encode()
    garbage = random.Random(0).randbytes(5000)
    arguments = ["--save_dir", damaged, "--resume", "--cache_dir", cache]
    bad = [content[: len(content) // 2], b"", garbage, len(header).to_bytes(8, "little") + header]
    for damage in bad[:: scale(2, 1, 1)]:
        shard.write_bytes(damage)
        result = train(work, *arguments)
        assert result.returncode == 2 and str(shard) in result.message
        assert "delete it, and its prompts are encoded again" in result.message
        tally("a damaged file of the cache").count("named")
    shard.unlink()
    assert train(work, *arguments).returncode == 0
    assert not differences(damaged, reference)


# The same bits


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_elsewhere(work, reference, tmp_path, scale, tally):
    """Another process, hash seed, working directory and cache; prompts encoded anew."""
    counts = tally("the same run in another process, folder, hash seed, and encoded anew")
    arguments = ["--config", work / "config.toml", "--cache_dir", tmp_path / "cache"]
    for seed in range(1, 1 + scale(1, 2, 5)):
        run, place, log = tmp_path / f"run{seed}", tmp_path / f"place{seed}", tmp_path / "log"
        place.mkdir()
        process = fresh(place, *arguments, "--save_dir", run, log=log, PYTHONHASHSEED=str(seed))
        assert process.wait() == 0, log.read_text()
        found = differences(run, reference)
        counts.count("the same bits" if not found else "other bits", lost=bool(found))
        assert not found
        if seed % 2 == 0:
            shutil.rmtree(tmp_path / "cache")


def test_finished_tells_one_message() -> None:
    """The tests above rest on it."""
    assert Finished(2, "a bar\nhypernoise: so").message == "hypernoise: so"
    for errors in ("", "hypernoise: a\nhypernoise: b", "Traceback\nhypernoise: a"):
        with pytest.raises(AssertionError):
            Finished(2, errors).message  # noqa: B018
