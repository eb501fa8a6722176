"""`hypernoise score`: folders of images, resumed, on several processes, with broken files."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hypernoise.hypernoise_core.rewards import load_rewards
from hypernoise.training.scoring import find_images, read_image, read_prompts, score_folder

COMMAND = "from hypernoise.training.cli import main; main()"
REWARDS = ["--rewards", "tiny-preference,redness=2"]
COLUMNS = ["image", "prompt", "tiny-preference", "redness", "total"]


def run(
    *arguments: str, launcher: tuple[str, ...] = ("-c", COMMAND)
) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *launcher, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )


def write_images(folder: Path, count: int = 7) -> dict[str, str]:
    """Images of two sizes in two folders, and a prompt for each."""
    rng = np.random.default_rng(0)
    prompts = {}
    for i in range(count):
        name = f"{'more/' if i % 3 == 0 else ''}{i}.png"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (64, 64, 3) if i % 2 else (80, 64, 3)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(path)
        prompts[name] = f"{i} red circles, or\n{i} squares"
    return prompts


def write_prompts(path: Path, prompts: dict[str, str]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("image", "prompt"), *prompts.items()])
    return path


def read_table(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return tmp_path / "images"


@pytest.fixture
def prompts(tmp_path: Path, images: Path) -> Path:
    return write_prompts(tmp_path / "prompts.csv", write_images(images))


def test_the_table_holds_each_reward_and_the_weighted_sum(images, prompts, tmp_path):
    table = tmp_path / "deep" / "out.csv"
    result = run("score", str(images), "--prompts", str(prompts), *REWARDS, "--csv", str(table))
    assert result.returncode == 0, result.stderr
    assert str(table) in result.stdout
    header, *rows = read_table(table)
    assert header == COLUMNS
    assert [row[0] for row in rows] == find_images(images)
    rewards = load_rewards({"tiny-preference": 1.0, "redness": 2.0})
    wanted = read_prompts(prompts, find_images(images))
    for name, prompt, *scores in rows:
        assert prompt == wanted[name]
        expected = rewards.scores(read_image(images / name)[None], [prompt])
        expected["total"] = rewards.total(expected)
        for column, score in zip(COLUMNS[2:], scores, strict=True):
            assert float(score) == pytest.approx(expected[column].item(), rel=1e-4, abs=1e-5)
    assert [path.name for path in table.parent.iterdir()] == ["out.csv"]


def test_several_processes_write_the_same_table(images, prompts, tmp_path):
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    common = ["score", str(images), "--prompts", str(prompts), *REWARDS]
    assert run(*common, "--csv", str(one)).returncode == 0
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    result = run("-m", "hypernoise.training.cli", *common, "--csv", str(two), launcher=launcher)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(str(two)) == 2  # each process says it
    rows = [read_table(path) for path in (one, two)]
    assert [row[:2] for row in rows[0]] == [row[:2] for row in rows[1]]
    numbers = [np.array([row[2:] for row in table[1:]], float) for table in rows]
    np.testing.assert_allclose(*numbers, rtol=1e-4, atol=1e-5)


class Interrupted(Exception):
    pass


class Rewards(torch.nn.Module):
    """Counts what it scores and breaks off where it is told to."""

    def __init__(self, rewards, stop_after=None) -> None:
        super().__init__()
        self.inner, self.stop_after, self.scored = rewards, stop_after, 0
        self.weights, self.device = rewards.weights, rewards.device
        self.total, self.complaints = rewards.total, rewards.complaints

    def scores(self, images, prompts):
        if self.stop_after is not None and self.scored >= self.stop_after:
            raise Interrupted
        self.scored += len(images)
        return self.inner.scores(images, prompts)


def test_a_run_that_was_broken_off_goes_on_where_it_was(images, prompts, tmp_path):
    table, rewards = tmp_path / "out.csv", load_rewards({"redness": 1.0})
    first, second, third = Rewards(rewards, stop_after=4), Rewards(rewards), Rewards(rewards)
    with pytest.raises(Interrupted):
        score_folder(images, prompts, first, table, 2)
    assert not table.exists() and first.scored == 4
    part = tmp_path / "out.csv.part0"
    part.write_bytes(part.read_bytes() + b"5.png,half a li")  # what a crash leaves
    score_folder(images, prompts, second, table, 2)
    assert second.scored == 3 and not part.exists()
    score_folder(images, prompts, third, table, 2)
    assert third.scored == 0
    whole = tmp_path / "whole.csv"
    score_folder(images, prompts, rewards, whole, 2)
    assert table.read_text() == whole.read_text()


def test_new_images_and_changed_prompts_are_scored_and_gone_ones_left_out(
    images, prompts, tmp_path
):
    table, rewards = tmp_path / "out.csv", load_rewards({"redness": 1.0})
    score_folder(images, prompts, rewards, table, 4)
    texts = read_prompts(prompts, find_images(images))
    (images / "1.png").unlink()
    Image.new("RGB", (64, 64), "red").save(images / "z.png")
    write_prompts(prompts, {**texts, "2.png": "another", "z.png": "new"})
    again = Rewards(rewards)
    score_folder(images, prompts, again, table, 4)
    rows = {row[0]: row for row in read_table(table)[1:]}
    assert again.scored == 2
    assert rows["z.png"][1:3] == ["new", "1"] and rows["2.png"][1] == "another"
    assert list(rows) == find_images(images)


def test_a_broken_image_is_named_and_the_others_are_scored(images, prompts, tmp_path):
    table = tmp_path / "out.csv"
    content = (images / "1.png").read_bytes()
    (images / "1.png").write_bytes(content[: len(content) // 2])
    (images / "2.png").write_bytes(b"no image")
    Image.new("RGB", (1, 1)).save(images / "4.png")
    result = run("score", str(images), "--prompts", str(prompts), *REWARDS, "--csv", str(table))
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "3 images are not in the table" in result.stderr
    for name in ("1.png", "2.png", "4.png"):
        assert str(images / name) in result.stderr
    assert [row[0] for row in read_table(table)[1:]] == [
        "5.png",
        "more/0.png",
        "more/3.png",
        "more/6.png",
    ]


def test_a_table_of_other_rewards_is_left_alone(images, prompts, tmp_path):
    table = tmp_path / "out.csv"
    table.write_bytes(b"image,prompt,hps,total\r\n1.png,a,0.2,0.2\r\n")
    before = table.read_bytes()
    with pytest.raises(ValueError, match="has the columns image, prompt, hps, total"):
        score_folder(images, prompts, load_rewards({"redness": 1.0}), table, 4)
    assert table.read_bytes() == before


def test_transparent_pixels_are_white_and_every_mode_is_read(tmp_path):
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert torch.equal(read_image(tmp_path / "a.png"), torch.ones(3, 20, 20))
    for mode in ("1", "L", "LA", "P", "CMYK"):
        suffix = "jpg" if mode == "CMYK" else "png"
        Image.new(mode, (20, 30)).save(tmp_path / f"b.{suffix}")
        assert read_image(tmp_path / f"b.{suffix}").shape == (3, 30, 20)


NAMES = ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("p.txt", "one for all\n", {"a.png": "one for all", "b.png": "one for all"}),
        ("p.txt", "one\n\n two \n", {"a.png": "one", "b.png": "two"}),
        (
            "p.csv",
            'prompt,image\r\ntwo,b.png\r\n"o\nne",a.png\r\n',
            {"b.png": "two", "a.png": "o\nne"},
        ),
    ],
)
def test_prompts_are_read(tmp_path, name, text, expected):
    (tmp_path / name).write_bytes(text.encode())
    assert read_prompts(tmp_path / name, NAMES) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", "one\ntwo\nthree\n", "3 prompts for 2 images"),
        ("p.txt", "", "0 prompts for 2 images"),
        ("p.csv", "image,prompt\na.png,one\n", "no prompt for 1 images, such as b.png"),
        ("p.csv", "image,text\na.png,one\n", "no column prompt"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name, NAMES)


def test_folders_without_images_are_named(tmp_path):
    with pytest.raises(ValueError, match="no image in"):
        find_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        find_images(tmp_path / "gone")
