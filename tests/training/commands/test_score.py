"""`hypernoise score`: folders of images, resumed, on several processes, with broken files."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hypernoise.hypernoise_core.rewards import load_rewards
from hypernoise.tests import warm
from hypernoise.tests.warm import hypernoise as run
from hypernoise.training.commands.score import read_prompts, score_folder
from hypernoise.training.image_files import find_images, read_image

REWARDS = ["--rewards", "tiny-preference,redness=2"]
COLUMNS = ["image", "prompt", "tiny-preference", "redness", "total", "identity"]
SCORER = {"precision": "float32"}


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
    wanted = read_prompts(prompts, images, find_images(images)).of_image
    for name, prompt, *scores, _ in rows:
        assert prompt == wanted[name]
        expected = rewards.scores(read_image(images / name)[None], [prompt])
        expected["total"] = rewards.total(expected)
        for column, score in zip(COLUMNS[2:-1], scores, strict=True):
            assert float(score) == pytest.approx(expected[column].item(), rel=1e-4, abs=1e-5)
    assert [path.name for path in table.parent.iterdir()] == ["out.csv"]


def test_several_processes_write_the_same_table(images, prompts, tmp_path):
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    common = ["score", str(images), "--prompts", str(prompts), *REWARDS]
    assert run(*common, "--csv", str(one)).returncode == 0
    result = run(*common, "--csv", str(two), processes=2)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(str(two)) == 2  # each process says it
    rows = [read_table(path) for path in (one, two)]
    assert [row[:2] for row in rows[0]] == [row[:2] for row in rows[1]]
    numbers = [np.array([row[2:-1] for row in table[1:]], float) for table in rows]
    np.testing.assert_allclose(*numbers, rtol=1e-4, atol=1e-5)


def start_and_hold(table: Path, ends: str = "signal.sigwait([signal.SIGTERM])") -> warm.Process:
    """A process that holds a table's lock when this returns, until SIGTERM comes."""
    holding = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom accelerate import PartialState\n"
        "from hypernoise.training.commands.score import _locked\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        "with _locked(Path(sys.argv[1]), PartialState()):\n"
        f"    print('held', flush=True)\n    {ends}\n"
    )
    process = warm.start(holding, table)
    while process.stdout != "held\n":
        assert process.poll() in (None, -signal.SIGKILL), process.stderr
        time.sleep(0.01)
    return process


def end(process: warm.Process) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0, process.stderr


def test_a_second_run_on_a_table_is_refused_until_the_first_ends(images, prompts, tmp_path):
    table, rewards = tmp_path / "out" / "out.csv", load_rewards({"redness": 1.0})
    first = start_and_hold(table)
    before = list(table.parent.iterdir())
    linked = tmp_path / "linked.csv"
    linked.symlink_to(table)
    for name in (table, linked):
        with pytest.raises(ValueError, match=f"{table}: another run is writing it; wait for it"):
            score_folder(images, prompts, rewards, name, 4, SCORER)
    assert list(table.parent.iterdir()) == before
    end(first)
    assert list(table.parent.iterdir()) == []
    score_folder(images, prompts, rewards, linked, 4, SCORER)
    assert list(table.parent.iterdir()) == [table] and linked.is_symlink()


def test_a_killed_run_leaves_the_table_to_the_next(images, prompts, tmp_path):
    table = tmp_path / "out" / "out.csv"
    start_and_hold(table, "os.kill(os.getpid(), signal.SIGKILL)").wait()
    assert list(table.parent.iterdir())
    score_folder(images, prompts, load_rewards({"redness": 1.0}), table, 4, SCORER)
    assert [path.name for path in table.parent.iterdir()] == ["out.csv"]


def test_a_lock_whose_file_is_deleted_meanwhile_is_held_by_one_alone(tmp_path):
    """The file is deleted with each release, while others are about to lock it."""
    counter, script = tmp_path / "counter", tmp_path / "count.py"
    counter.write_text("0")
    script.write_text(
        "import sys\nfrom pathlib import Path\n"
        "from hypernoise.training.locking import passing_lock\n"
        "counter, done = Path(sys.argv[1]), 0\n"
        "while done < 150:\n"
        "    try:\n"
        "        with passing_lock(counter.with_name('lock'), ''):\n"
        "            count = int(counter.read_text())\n"
        "            counter.write_text(str(count + 1))\n"
        "            done += 1\n"
        "    except ValueError:\n"
        "        pass\n"
    )
    command = [sys.executable, str(script), str(counter)]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert counter.read_text() == "450" and not (tmp_path / "lock").exists()


@pytest.mark.parametrize("length", [200, 250, 255, 300])
def test_a_table_with_a_long_name_is_written_or_refused_at_once(images, prompts, tmp_path, length):
    table = tmp_path / "out" / ("x" * (length - 4) + ".csv")
    rewards = load_rewards({"redness": 1.0})
    if length == 200:
        score_folder(images, prompts, rewards, table, 4, SCORER)
        assert list(table.parent.iterdir()) == [table]
        return
    with pytest.raises(OSError, match="name too long") as raised:
        score_folder(images, prompts, Rewards(rewards, stop_after=0), table, 4, SCORER)
    assert str(table) in str(raised.value)


_PROCESS = """
import sys
from pathlib import Path
from hypernoise.hypernoise_core.rewards import load_rewards
from hypernoise.training.processes import join
from hypernoise.training.commands.score import score_folder
join()
images, prompts, table = map(Path, sys.argv[1:])
score_folder(images, prompts, load_rewards({"redness": 1.0}), table, 4, {})
"""


def test_all_processes_of_a_refused_run_say_so(images, prompts, tmp_path):
    """Those that do not hold the lock would wait for the one that did not get it."""
    table = tmp_path / "out" / "out.csv"
    first = start_and_hold(table)
    both = warm.start_all(2, _PROCESS, images, prompts, table)
    for process in both:
        assert process.wait() == 1
        assert "ValueError" in process.stderr, process.stderr
        assert f"{table}: another run is writing it" in process.stderr
    end(first)
    assert list(table.parent.iterdir()) == []


class Interrupted(Exception):
    pass


class Rewards(torch.nn.Module):
    """Counts what it scores and breaks off where it is told to."""

    def __init__(self, rewards, stop_after=None) -> None:
        super().__init__()
        self.inner, self.stop_after, self.scored = rewards, stop_after, 0
        self.weights, self.device = rewards.weights, rewards.device
        self.total, self.prompt_warnings = rewards.total, rewards.prompt_warnings

    def scores(self, images, prompts):
        if self.stop_after is not None and self.scored >= self.stop_after:
            raise Interrupted
        self.scored += len(images)
        return self.inner.scores(images, prompts)


def test_a_run_that_was_broken_off_goes_on_where_it_was(images, prompts, tmp_path):
    table, rewards = tmp_path / "out.csv", load_rewards({"redness": 1.0})
    first, second, third = Rewards(rewards, stop_after=4), Rewards(rewards), Rewards(rewards)
    with pytest.raises(Interrupted):
        score_folder(images, prompts, first, table, 2, SCORER)
    assert not table.exists() and first.scored == 4
    part = tmp_path / "out.csv.part0"
    part.write_bytes(part.read_bytes() + b"5.png,half a li")  # what a crash leaves
    score_folder(images, prompts, second, table, 2, SCORER)
    assert second.scored == 3 and not part.exists()
    score_folder(images, prompts, third, table, 2, SCORER)
    assert third.scored == 0
    whole = tmp_path / "whole.csv"
    score_folder(images, prompts, rewards, whole, 2, SCORER)
    assert table.read_text() == whole.read_text()


def test_new_images_and_changed_prompts_are_scored_and_gone_ones_left_out(
    images, prompts, tmp_path
):
    table, rewards = tmp_path / "out.csv", load_rewards({"redness": 1.0})
    score_folder(images, prompts, rewards, table, 4, SCORER)
    texts = read_prompts(prompts, images, find_images(images)).of_image
    (images / "1.png").unlink()
    Image.new("RGB", (64, 64), "red").save(images / "z.png")
    write_prompts(prompts, {**texts, "2.png": "another", "z.png": "new"})
    again = Rewards(rewards)
    score_folder(images, prompts, again, table, 4, SCORER)
    rows = {row[0]: row for row in read_table(table)[1:]}
    assert again.scored == 2
    assert rows["z.png"][1:3] == ["new", "1"] and rows["2.png"][1] == "another"
    assert list(rows) == find_images(images)


def totals(table: Path) -> dict[str, float]:
    return {row[0]: float(row[-2]) for row in read_table(table)[1:]}


def test_scores_belong_to_the_content_of_the_images_and_not_to_their_names(tmp_path, capsys):
    rewards, table = load_rewards({"redness": 1.0}), tmp_path / "out.csv"
    for folder, colour in (("a", "red"), ("b", "blue")):
        (tmp_path / folder).mkdir()
        for name in ("0.png", "1.png"):
            Image.new("RGB", (64, 64), colour).save(tmp_path / folder / name)
    (tmp_path / "p.txt").write_text("a square\n")
    score_folder(tmp_path / "a", tmp_path / "p.txt", rewards, table, 2, SCORER)
    assert totals(table) == {"0.png": 1.0, "1.png": 1.0}
    score_folder(tmp_path / "b", tmp_path / "p.txt", rewards, table, 2, SCORER)
    assert totals(table) == {"0.png": -0.5, "1.png": -0.5}
    assert f"2 rows of {table} are for another image" in capsys.readouterr().err
    replaced = tmp_path / "b" / "1.png"
    status = replaced.stat()
    replaced.write_bytes((tmp_path / "a" / "1.png").read_bytes())
    os.utime(replaced, ns=(status.st_atime_ns, status.st_mtime_ns - 10**9))
    again = Rewards(rewards)
    score_folder(tmp_path / "b", tmp_path / "p.txt", again, table, 2, SCORER)
    assert totals(table) == {"0.png": -0.5, "1.png": 1.0} and again.scored == 1
    moved = (tmp_path / "b").rename(tmp_path / "c")
    unmoved = Rewards(rewards)
    score_folder(moved, tmp_path / "p.txt", unmoved, table, 2, SCORER)
    assert unmoved.scored == 0


@pytest.mark.parametrize("scorer", [{"precision": "bfloat16"}, {**SCORER, "redness": "another"}])
def test_another_precision_or_weights_on_disk_score_all_again(images, prompts, tmp_path, scorer):
    table, rewards = tmp_path / "out.csv", load_rewards({"redness": 1.0})
    score_folder(images, prompts, rewards, table, 4, SCORER)
    again = Rewards(rewards)
    score_folder(images, prompts, again, table, 4, scorer)
    assert again.scored == 7


def test_the_total_is_always_of_the_weights_that_are_asked_for(images, prompts, tmp_path):
    table = tmp_path / "out.csv"
    for weight in (1.0, 100.0):
        rewards = Rewards(load_rewards({"tiny-preference": 1.0, "redness": weight}))
        score_folder(images, prompts, rewards, table, 4, SCORER)
        for row in read_table(table)[1:]:
            preference, redness, total = map(float, row[2:5])
            assert total == pytest.approx(preference + weight * redness, rel=1e-5)
    assert rewards.scored == 0


def test_rows_that_a_crash_left_are_held_against_the_images_too(images, prompts, tmp_path):
    table, rewards = tmp_path / "out.csv", load_rewards({"redness": 1.0})
    with pytest.raises(Interrupted):
        score_folder(images, prompts, Rewards(rewards, stop_after=4), table, 2, SCORER)
    parts = [tmp_path / f"out.csv.part{i}" for i in (0, 1)]
    (first, *_) = [row[0] for row in read_table(parts[0])[1:]]
    Image.new("RGB", (64, 64), "red").save(images / first)
    parts[0].rename(parts[1])  # of a process that this run does not have
    again = Rewards(rewards)
    score_folder(images, prompts, again, table, 2, SCORER)
    assert again.scored == 4 and totals(table)[first] == 1.0 and not parts[1].exists()


def test_half_a_first_row_that_a_crash_left_spoils_no_other(images, prompts, tmp_path):
    table, rewards = tmp_path / "out.csv", load_rewards({"redness": 1.0})
    header = "image,prompt,redness,total,identity\r\n"
    (tmp_path / "out.csv.part0").write_bytes(f"{header}5.png,half a li".encode())
    with pytest.raises(Interrupted):
        score_folder(images, prompts, Rewards(rewards, stop_after=4), table, 2, SCORER)
    again = Rewards(rewards)
    score_folder(images, prompts, again, table, 2, SCORER)
    assert again.scored == 3 and list(totals(table)) == find_images(images)


def test_a_table_that_a_spreadsheet_has_saved_is_gone_on_with(images, prompts, tmp_path):
    table, rewards = tmp_path / "out.csv", load_rewards({"redness": 1.0})
    score_folder(images, prompts, rewards, table, 4, SCORER)
    before = table.read_bytes()
    table.write_bytes(b"\xef\xbb\xbf" + before.replace(b"\r\n", b"\n"))
    again = Rewards(rewards)
    score_folder(images, prompts, again, table, 4, SCORER)
    assert again.scored == 0 and table.read_bytes() == before


def test_a_table_of_another_folder_is_not_overwritten(images, prompts, tmp_path):
    table, rewards = tmp_path / "out.csv", load_rewards({"redness": 1.0})
    score_folder(images, prompts, rewards, table, 4, SCORER)
    before = table.read_bytes()
    (tmp_path / "other").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "other" / "z.png")
    (tmp_path / "p.txt").write_text("a square\n")
    with pytest.raises(ValueError, match="contains scores of other images, none of them in"):
        score_folder(tmp_path / "other", tmp_path / "p.txt", rewards, table, 4, SCORER)
    assert table.read_bytes() == before


def test_what_is_not_read_is_named_and_links_are_followed(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("a.PNG", "b.jfif", "c.jpe", "d.avif", "e.tif", "f.gif", "elsewhere/g.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        kind = {".jfif": "JPEG", ".jpe": "JPEG"}.get(Path(name).suffix)
        Image.new("RGB", (64, 64), "red").save(folder / name, format=kind)
    (folder / "elsewhere").rename(tmp_path / "elsewhere")
    (folder / "link").symlink_to(tmp_path / "elsewhere", True)
    (tmp_path / "elsewhere" / "circle").symlink_to(folder, True)
    (folder / "notes.md").write_text("no image")
    prompts = tmp_path / "p.jsonl"
    rows = [{"file_name": name, "text": "a"} for name in (*"zy", "a.PNG", "b.jfif", "c.jpe")]
    rows += [{"file_name": name, "text": "a"} for name in ("d.avif", "e.tif", "link/g.png")]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = tmp_path / "out.csv"
    result = run("score", str(folder), "--prompts", str(prompts), *REWARDS, "--csv", str(table))
    assert list(totals(table)) == ["a.PNG", "b.jfif", "c.jpe", "d.avif", "link/g.png"]
    assert result.returncode == 2 and "4 images are not in the table" in result.stderr
    for problem in (
        f"{folder / 'e.tif'} cannot be read as an image: cannot identify",
        f"{folder / 'f.gif'} has an unsupported format; save it as .png",
        f"{prompts}, line 1: there is no image 'z' in {folder}",
        f"{prompts}, line 2: there is no image 'y' in {folder}",
    ):
        assert problem in result.stderr


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
        score_folder(images, prompts, load_rewards({"redness": 1.0}), table, 4, SCORER)
    assert table.read_bytes() == before


def test_two_prompts_of_one_image_are_named(tmp_path):
    (file := tmp_path / "p.csv").write_text("image,prompt\na.png,red\n./a.png,blue\na.png,red\n")
    with pytest.raises(
        ValueError, match=r"p.csv, line 3: './a.png' has a different prompt in line 2"
    ):
        read_prompts(file, tmp_path, ["a.png"])


def test_an_image_stands_as_the_camera_was_held(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it a quarter clockwise to look at it
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 20, 20))
    image.save(tmp_path / "a.png", exif=exif)
    seen = read_image(tmp_path / "a.png")
    assert seen.shape == (3, 40, 20)
    assert (seen[:, :20] == 1).all() and (seen[:, 20:] == 0).all()


def test_transparent_pixels_are_white_and_every_mode_is_read(tmp_path):
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert torch.equal(read_image(tmp_path / "a.png"), torch.ones(3, 20, 20))
    for mode in ("1", "L", "LA", "P", "CMYK"):
        suffix = "jpg" if mode == "CMYK" else "png"
        Image.new(mode, (20, 30)).save(tmp_path / f"b.{suffix}")
        assert read_image(tmp_path / f"b.{suffix}").shape == (3, 30, 20)


def test_grey_images_of_16_bits_keep_their_shades(tmp_path):
    shades = np.array([0, 257, 128 * 257, 65535], np.uint16)
    Image.fromarray(shades.repeat(100).reshape(20, 20)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert (image[:, ::5, 0] * 255).round().tolist() == 3 * [[0, 1, 128, 255]]


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
        ("p.csv", "image;prompt\na.png;one, two\nb.png;x\n", {"a.png": "one, two", "b.png": "x"}),
        ("p.csv", "image\tprompt\na.png\tone\nb.png\tx\n", {"a.png": "one", "b.png": "x"}),
        ("p.tsv", "file_name\tcaption\na.png\tone\nb.png\tx\n", {"a.png": "one", "b.png": "x"}),
        ("p.csv", "image, prompt\n./a.png,one\n.\\b.png,x\n", {"a.png": "one", "b.png": "x"}),
        ("p.json", '{"a.png": "one", "b.png": "x"}', {"a.png": "one", "b.png": "x"}),
        ("p.json", '["one", "x"]', {"a.png": "one", "b.png": "x"}),
        (
            "p.json",
            '{"b.png": {"category": "c", "prompt": "x"}, "a.png": {"category": "", "prompt": "y"}}',
            {"a.png": "y", "b.png": "x"},
        ),
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "text": "one"}\n{"file_name": "b.png", "text": "x"}\n',
            {"a.png": "one", "b.png": "x"},
        ),
        ("prompts", "one\nx\n", {"a.png": "one", "b.png": "x"}),
    ],
)
def test_prompts_are_read(tmp_path, name, text, expected):
    (tmp_path / name).write_bytes(text.encode())
    assert read_prompts(tmp_path / name, tmp_path, NAMES).of_image == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", "one\ntwo\nthree\n", "3 prompts for 2 images"),
        ("p.txt", "", "0 prompts for 2 images"),
        ("p.csv", "image,prompt\na.png,one\n", "no prompt for 1 images, such as b.png"),
        ("p.csv", "image,prompt\na.png,one\nc.png,x\n", "such as b.png; it names 'c.png', which"),
        ("p.csv", "id,prompt\n1,one\n2,x\n", "line 2: there is no image name"),
        ("p.jsonl", '{"prompt": "one"}\n{"prompt": "x"}', "line 1: there is no image name"),
        (
            "p.jsonl",
            '{"image": "a.png", "text": "x"}\n{"text": "x"}',
            "line 2: the image name is missing",
        ),
        ("p.docx", "one\nx\n", r"p\.docx: cannot read prompts from a \.docx file; use .*\.jsonl"),
        ("p.csv", "image,words\na.png,one\n", "no column prompt"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name, tmp_path, NAMES)


def test_names_of_images_are_equal_whatever_their_spelling(tmp_path):
    names = ["caf\u00e9.png", "sub/cafe\u0301.png"]
    for spellings in (
        ["cafe\u0301.png", "sub\\caf\u00e9.png"],
        [str(tmp_path / "caf\u00e9.png"), f"{tmp_path}/sub/../sub/cafe\u0301.png"],
    ):
        write_prompts(tmp_path / "p.csv", dict(zip(spellings, ("one", "two"), strict=True)))
        found = read_prompts(tmp_path / "p.csv", tmp_path, names)
        assert found.of_image == dict(zip(names, ("one", "two"), strict=True))
        assert not found.problems


def test_folders_without_images_are_named(tmp_path):
    with pytest.raises(ValueError, match="no images in"):
        find_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        find_images(tmp_path / "gone")
