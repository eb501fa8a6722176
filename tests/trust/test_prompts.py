"""Prompts that people type, paste and share: each works, or one message says what is wrong."""

import json
import logging
import os
import random
import shutil
import string
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from transformers import AutoTokenizer

from hypernoise.hypernoise_core.errors import LibraryFolderError
from hypernoise.hypernoise_core.generate import encode_prompts, generate
from hypernoise.hypernoise_core.library_folder import check_pipeline
from hypernoise.hypernoise_core.rewards import Ensemble, load_rewards, parse_weights
from hypernoise.hypernoise_core.rewards.clip import ClipTokenizer, TransformersClip
from hypernoise.hypernoise_core.rewards.clip_score import ClipScore
from hypernoise.hypernoise_core.rewards.hps import Hps, load_open_clip
from hypernoise.hypernoise_core.rewards.image_reward import BertTokenizer, load_image_reward
from hypernoise.hypernoise_core.rewards.images import Preprocess
from hypernoise.hypernoise_core.text import check_prompts, printable
from hypernoise.tests.rewards import stand_ins
from hypernoise.tests.trust.generated import examples
from hypernoise.tests.warm import hypernoise
from hypernoise.training import prompt_files
from hypernoise.training.commands.score import read_prompts
from hypernoise.training.embedded_models import EMBEDDED
from hypernoise.training.pipelines import load_pipeline
from hypernoise.training.prompt_files import read_file
from hypernoise.training.prompts import load_prompts

LETTERS = "".join(random.Random(0).choices(string.ascii_lowercase, k=100_000))
GOOD = {
    "empty": "", "spaces": "   ", "tabs and lines": "\t\n\r\n a \v\f", "nul": "a\0b", "bell": "\a",
    "ansi colour": "\x1b[31mred\x1b[0m", "ansi title": "\x1b]0;title\x07", "clear": "\x1b[2J",
    "c1": "\x9b31m\x85", "delete": "\x7f", "right to left": "שלום עולם", "override": "\u202eevil",
    "isolate": "\u2066a\u2069", "family": "👩‍👩‍👧‍👦" * 20, "flags": "🇩🇪🇺🇦", "skin": "👍🏽",
    "combining": "e" + "\u0301" * 500, "zalgo": "".join(c + "\u0334\u0489" for c in "zalgo text"),
    "ligatures": "ﬁﬂ½²", "nfd": unicodedata.normalize("NFD", "ÄÖÜ é"), "bom": "\ufeffa",
    "not a character": "\uffff\ufffe", "private": "\ue000", "astral": "𝕳𝖊𝖑𝖑𝖔",
    "chinese": "一只红色的圆" * 200,
    "script": "<script>alert(1)</script>", "entity": "&lt;&#0;&#x110000;&amp;amp;",
    "style": "</style><img src=x onerror=alert(1)>", "shell": "$(rm -rf ~); `id` && x | y > z",
    "format": "{0} {x!r} {} %s %n %(a)s ${HOME}", "weights": "(a:1.2) ((b)) [c] {d|e} <lora:x:1>",
    "weight of nothing": "(:1.5) (a:nan) (a:1e999)", "embedding": "embedding:../../x",
    "quotes": "\"'`´“”", "backslashes": "\\n \\x00 \\",
    "tokens": "<bos><eos>[CLS][SEP]<|endoftext|>",
    "math": "$\\frac{a}{b}$ $\\foo$", "json": '{"a": [1]}', "path": "../../etc/passwd",
    "flag": "--help -rf", "formula": "=cmd|' /C calc'!A0", "wildcard": "__colour__ {a|b}",
    "long": "word " * 20_000, "one word": LETTERS, "one letter": "a" * 100_000,
    "marks": "." * 100_000, "emoji": "🦊" * 50_000, "digits": "7" * 100_000,
}  # fmt: skip
BAD: dict[str, Any] = {
    "surrogate": "a \ud800 b", "half of an emoji": "\ud83d", "other half": "\udc00" * 3,
    "byte": os.fsdecode(b"caf\xe9"), "too long": "a" * 200_001, "number": 7, "none": None,
    "bytes": b"a red circle", "list": ["a"],
}  # fmt: skip


@pytest.fixture(scope="module")
def rewards(tmp_path_factory) -> dict[str, Ensemble]:
    """Those that read prompts, on small networks with their own tokenizers, and redness."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("rewards")
    clip = ClipScore(
        TransformersClip(stand_ins.clip_model(), ClipTokenizer(), Preprocess(32))
    ).eval()
    stand_ins.write_hps(folder / "hps.pt")
    torch.save(stand_ins.image_reward_tensors(stand_ins.VISION, stand_ins.TEXT), folder / "blip.pt")
    tokenizer = BertTokenizer(stand_ins.write_tokenizer(folder / "tokenizer.json"))
    blip = load_image_reward(stand_ins.VISION, stand_ins.TEXT, folder / "blip.pt", tokenizer)
    hps = Hps(load_open_clip(stand_ins.OPEN_CLIP, folder / "hps.pt"))
    built = {"clip": clip, "hps": hps, "imagereward": blip}
    found = {name: Ensemble({name: (reward, 1.0)}) for name, reward in built.items()}
    return found | {name: load_rewards({name: 1.0}) for name in ("tiny-preference", "redness")}


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return load_pipeline("tiny-sprint")


IMAGE = torch.full((1, 3, 64, 64), 0.5)
NAMES = ("clip", "hps", "imagereward", "tiny-preference", "redness")


@pytest.mark.parametrize("name", NAMES)
def test_every_prompt_is_scored_or_refused(rewards, tally, name):
    counted = tally("prompts to rewards")
    for prompt in GOOD.values():
        scores = rewards[name].score(IMAGE, [prompt])
        assert scores.isfinite().all()
        for complaint in rewards[name].prompt_warnings([prompt]):
            assert len(complaint) < 300 and printable(complaint) == complaint
        counted.count("worked")
    for prompt in BAD.values():
        with pytest.raises(ValueError, match=r"^prompt 0 .*\S$"):
            rewards[name].score(IMAGE, [prompt])
        counted.count("refused")


def test_a_text_in_place_of_a_list_is_refused(rewards, pipeline):
    for call in (
        lambda: rewards["redness"].score(IMAGE, "a"),
        lambda: generate(pipeline, "a", seeds=[0]),
        lambda: encode_prompts(pipeline, "a"),
    ):
        with pytest.raises(ValueError, match="one prompt per image, not the string 'a'"):
            call()


def test_the_generator_reads_every_prompt_or_refuses_it(pipeline, tally):
    counted = tally("prompts to the generator")
    texts = list(GOOD.values())
    found = generate(pipeline, texts, seeds=range(len(texts)), batch_size=1)
    assert found.images.isfinite().all() and len(found.images) == len(texts)
    counted.count("worked", len(texts))
    for prompt in BAD.values():
        with pytest.raises(ValueError, match=r"^prompt 1 .*\S$"):
            generate(pipeline, ["a", prompt], seeds=[0, 1])
        counted.count("refused")
    with pytest.raises(ValueError, match="at least one"):
        generate(pipeline, [], seeds=[])
    with pytest.raises(ValueError, match="at least one"):
        encode_prompts(pipeline, [])


def test_a_long_prompt_is_cut_off_without_a_word_of_indexing_errors(tally):
    """What rewards leave out they say themselves."""
    told: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = told.append
    logger = logging.getLogger("transformers.tokenization_utils_base")
    logger.addHandler(handler)
    try:
        long = "a red circle " * 200
        encode_prompts(load_pipeline("tiny-sprint"), [long])
        (complaint,) = load_rewards({"tiny-preference": 1.0}).prompt_warnings([long])
        assert "ignores the end of the prompt" in complaint
        assert told == []
        AutoTokenizer.from_pretrained(EMBEDDED["tiny-sprint"] / "tokenizer")(long)
        assert "indexing errors" in told[0].getMessage()  # so it would have been heard
    finally:
        logger.removeHandler(handler)
    tally("prompts to the generator").count("worked")


def test_very_many_prompts_are_encoded(pipeline, rewards, scale):
    count = scale(2_000, 10_000, 100_000)
    prompts = [f"{i % 500} red circles" for i in range(count)]
    conditioning = encode_prompts(pipeline, prompts, batch_size=64)
    assert {len(rows) for rows in conditioning.values()} == {count}
    images = torch.rand(1, 3, 16, 16).expand(count, -1, -1, -1)
    assert rewards["redness"].score(images, prompts).isfinite().all()


TEXT = st.text(st.characters(), max_size=60) | st.text(
    st.sampled_from("\0\x1b\x9b[m\u202e\u200d\ud800\udfff\ufeff<>&;'\"(){}:%$\\|=é👍 a"),
    max_size=30,
)


def test_prompts_from_a_generator_are_scored_or_refused(rewards, scale, tally):
    counted = tally("random prompts to rewards")

    @examples(scale(300, 1_000, 10_000))
    @given(TEXT)
    def check(prompt):
        broken = any(unicodedata.category(c) == "Cs" for c in prompt)
        for name in ("clip", "imagereward", "tiny-preference"):
            try:
                score = rewards[name].score(IMAGE, [prompt])
            except ValueError as error:
                assert broken and str(error).startswith("prompt 0 ")
                counted.count("refused")
            else:
                assert not broken and score.isfinite().all()
                counted.count("worked")

    check()


@pytest.mark.parametrize(
    "text",
    ["", " ", ",", "=", "=1", "hps=", "hps=nan", "hps=inf", "hps=1e999", "hps=x", "hps=1=2",
     "hps,hps", "\x1b[31m", "\ud800", "../hps", "hps;clip", "HPS", "paper,hps", "9" * 5000],
)  # fmt: skip
def test_names_of_rewards_are_read_or_refused(text, tally):
    if text == "hps=":  # a name alone has weight 1
        assert parse_weights(text) == {"hps": 1.0}
        return
    with pytest.raises(ValueError) as error:
        parse_weights(text)
    assert printable(str(error.value)) == str(error.value)
    tally("names of rewards").count("refused")


def test_what_is_printed_holds_nothing_that_a_terminal_obeys(scale, tally):
    counted = tally("random texts to the terminal")

    @examples(scale(500, 5_000, 50_000))
    @given(TEXT)
    def check(text):
        shown = printable(text)
        shown.encode()
        assert not any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" for c in shown)
        assert printable(shown) == shown
        try:
            check_prompts([text])
        except ValueError as error:
            str(error).encode()
        counted.count("safe")

    check()


# Files


def in_utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


HUGE = "9" * 5000
DEEP = "[" * 100_000 + "]" * 100_000
READ: dict[str, tuple[bytes, list[str]]] = {
    "bom.txt": (b"\xef\xbb\xbfa\r\nb\r\n", ["a", "b"]),
    "old mac.txt": (b"a\rb\r", ["a", "b"]),
    "no end.txt": (b"a", ["a"]),
    "giant line.txt": (b"word " * 30_000, [("word " * 30_000).strip()]),
    "control.txt": (b"\x1b[31mred\x1b[0m\n", ["[31mred [0m"]),
    "markup.txt": (b"<script>\n$(id)\n{0}%s\n", ["<script>", "$(id)", "{0}%s"]),
    "quotes.csv": (b'prompt\r\n"a, ""b""\r\nc"\r\n', ['a, "b"\nc']),
    "joined.txt": (b"a\n\xef\xbb\xbfb\n", ["a", "b"]),
    "nothing to see.txt": ("a\n\u200b\u2060\n \u00ad\n".encode(), ["a"]),
    "separators.txt": ("a\u2028b\u0085c\x0cd\n".encode(), ["a\u2028b c d"]),
    "semicolons.csv": (b"n;prompt\n1;a, b\n", ["a, b"]),
    "tabs.csv": (b"n\tprompt\n1\ta; b\n", ["a; b"]),
    "bom.csv": (b"\xef\xbb\xbfprompt,n\na,1\n", ["a"]),
    "deep elsewhere.jsonl": (b'{"prompt": "a", "x": ' + b"[" * 500 + b"]" * 500 + b"}", ["a"]),
    "nulls.json": (b'["a", null, "", "  "]', ["a"]),
    "escapes.json": (b'["\\ud83d\\ude00"]', ["😀"]),
}
REFUSED: dict[str, tuple[bytes, str]] = {
    "empty.txt": (b"", "contains no prompts"),
    "blank.txt": (b"\n \n\t\n", "contains no prompts"),
    "utf-16.txt": ("a\nb".encode("utf-16"), "line 1: this is not UTF-8"),
    "latin-1.txt": ("gut\ngrün".encode("latin-1"), "line 2: this is not UTF-8"),
    "nul.txt": (b"a\nb\0c\n", r"line 2: a prompt cannot contain the character '\x00'"),
    "surrogate.txt": (in_utf8("a\n\ud800"), "line 2: this is not UTF-8"),
    "empty.csv": (b"", "has no column"),
    "header alone.csv": (b"prompt\n", "contains no prompts"),
    "no column.csv": (b"words,n\na,1\n", "only words, n"),
    "two columns.csv": (b"prompt,prompt\na,b\n", "several columns named prompt"),
    "short row.csv": (b"n,prompt\n1,a\n2\n", "line 3: 1 values for 2 columns"),
    "nul.csv": (b"prompt\na\0b\n", "line 2"),
    "open quote.csv": (b'prompt\n"a\n\n', "invalid CSV"),
    "giant cell.csv": (b"prompt\n" + b"a" * 200_000 + b"\n", "line 2"),
    "wide.csv": (b",".join(b"x" * 50 for _ in range(5000)) + b"\n1\n", "and 4980 more"),
    "utf-16.csv": ("prompt\na".encode("utf-16"), "not UTF-8"),
    "empty.json": (b"", "line 1: invalid JSON"),
    "deep.json": (DEEP.encode(), "line 1: cannot read this JSON"),
    "deep objects.json": (b'{"a":' * 100_000, "line 1: cannot read this JSON"),
    "huge number.json": (f'["a", {HUGE}]'.encode(), "line 1: cannot read this JSON"),
    "number.json": (b'["a", 1e999]', "entry 2: a prompt must be a string, not inf"),
    "list in list.json": (b'[["a"]]', "entry 1: a prompt must be a string"),
    "boolean.json": (b"true", "neither a list nor an object"),
    "surrogate.json": (b'["a", "\\ud83d"]', "entry 2: a prompt cannot contain the character"),
    "nul.json": (b'{"k\\u001b[31m": "\\u0000"}', "cannot contain the character"),
    "no column.json": (b'[{"words": "a"}]', "only words"),
    "many columns.json": (
        json.dumps([{f"k{i}": "a" for i in range(100_000)}]).encode(), "and 99980 more",
    ),
    "deep.jsonl": (b'"a"\n' + DEEP.encode(), "line 2: cannot read this JSON"),
    "huge number.jsonl": (f'"a"\n{HUGE}\n'.encode(), "line 2: cannot read this JSON"),
    "cut short.jsonl": (b'{"prompt": "a"}\n{"prompt": "b', "line 2: invalid JSON"),
    "other key.jsonl": (b'{"prompt": "a"}\n{"text": "b"}', "line 2: there is no key prompt"),
    "wrong type.jsonl": (b'{"prompt": {"a": 1}}', "line 1: a prompt must be a string"),
    "utf-16.jsonl": ('"a"'.encode("utf-16"), "not UTF-8"),
    "empty.parquet": (b"", "is damaged or not a .parquet file"),
    "garbage.parquet": (b"PAR1" + b"\xff" * 100 + b"PAR1", "is damaged or not a .parquet file"),
    "html.parquet": (b"<!doctype html>404", "is damaged or not a .parquet file"),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_odd_prompt_files_are_read(name, tmp_path, tally):
    content, expected = READ[name]
    (tmp_path / name).write_bytes(content)
    assert load_prompts(str(tmp_path / name)) == expected
    tally("odd prompt files").count("worked")


@pytest.mark.parametrize("name", REFUSED)
def test_broken_prompt_files_are_refused_with_their_name(name, tmp_path, tally):
    content, reason = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        load_prompts(str(tmp_path / name))
    message = str(error.value)
    assert str(tmp_path / name) in message and reason in message and len(message) < 3000
    tally("odd prompt files").count("refused")


def parquet_with(path: Path, **columns: Any) -> Path:
    names, arrays = zip(*columns.items(), strict=True)
    parquet.write_table(pyarrow.table(list(arrays), names=list(names)), path)
    return path


def test_parquet_columns_that_hold_no_texts_are_refused(tmp_path, tally):
    broken = pyarrow.array([b"\xff\xfe"], pyarrow.binary()).view(pyarrow.string())
    columns = {
        "bytes": pyarrow.array([b"a"]),
        "numbers": pyarrow.array([1.5]),
        "lists": pyarrow.array([["a"]]),
        "structs": pyarrow.array([{"a": 1}]),
        "not UTF-8": broken,
        "nul": pyarrow.array(["a\0b"]),
    }
    for kind, values in columns.items():
        path = parquet_with(tmp_path / f"{kind}.parquet", prompt=values)
        with pytest.raises(ValueError, match=kind):
            load_prompts(str(path))
        tally("odd prompt files").count("refused")
    table = pyarrow.table([["a"], ["b"]], names=["prompt", "prompt"])
    parquet.write_table(table, tmp_path / "twice.parquet")
    with pytest.raises(ValueError, match="several columns named prompt"):
        load_prompts(str(tmp_path / "twice.parquet"))
    tally("odd prompt files").count("refused")


def test_parquet_files_with_changed_bytes_are_read_or_refused(tmp_path, scale, tally):
    counted = tally("damaged .parquet files")
    good = parquet_with(
        tmp_path / "good.parquet", n=list(range(50)), caption=[f"prompt {i}" for i in range(50)]
    ).read_bytes()
    rng = random.Random(0)
    path = tmp_path / "bad.parquet"
    for _ in range(scale(300, 2_000, 20_000)):
        content = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 8))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content[: rng.choice((len(content), rng.randrange(len(content))))])
        try:
            prompts = read_file(path)
        except ValueError as error:
            assert str(path) in str(error)
            counted.count("refused")
        else:
            assert all(isinstance(prompt, str) and prompt for prompt in prompts)
            counted.count("read")


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".json", ".jsonl", ".parquet"])
def test_what_is_no_file_is_refused_and_never_waited_for(suffix, tmp_path, tally):
    counted = tally("prompt files that are none")
    folder, pipe, gone = (tmp_path / f"{name}{suffix}" for name in ("folder", "pipe", "gone"))
    folder.mkdir()
    os.mkfifo(pipe)
    circle = tmp_path / f"circle{suffix}"
    circle.symlink_to(circle)
    for path in (folder, pipe, gone, circle):
        with pytest.raises((ValueError, FileNotFoundError), match=path.name):
            load_prompts(str(path))
        counted.count("refused")


@pytest.mark.parametrize("task", ["", " ", "\0", "a\0.txt", "\ud800.txt", "x" * 5000, "%s"])
def test_tasks_that_are_none_are_refused(task, tally, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError)):
        load_prompts(task)
    tally("prompt files that are none").count("refused")


TABLES: dict[str, tuple[bytes, str]] = {
    "utf-16.txt": ("a".encode("utf-16"), "line 1: this is not UTF-8"),
    "latin-1.csv": ("image,prompt\na.png,grün\n".encode("latin-1"), "line 2: this is not UTF-8"),
    "nul.txt": (b"a\0b\n", r"line 1: a prompt cannot contain the character '\x00'"),
    "nul.csv": (b"image,prompt\na.png,x\0\n", "line 2"),
    "open quote.csv": (b'image,prompt\na.png,"x\n', "invalid CSV"),
    "short row.csv": (b"image,prompt\na.png\n", "line 2: 1 values for 2 columns"),
    "long row.csv": (b"image,prompt\na.png,x,y\n", "line 2: 3 values for 2 columns"),
    "blank prompt.csv": (b"image,prompt\na.png,  \n", "no prompt for 1 images"),
    "two columns.csv": (b"image,prompt,prompt\na.png,x,y\n", "several columns named prompt"),
    "two prompts.csv": (
        b"image,prompt\na.png,x\na.png,y\n",
        "line 3: 'a.png' has a different prompt",
    ),
    "empty.csv": (b"", "no column prompt"),
}


@pytest.mark.parametrize("name", TABLES)
def test_broken_prompts_of_hypernoise_score_are_refused_with_their_name(name, tmp_path, tally):
    content, reason = TABLES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_prompts(tmp_path / name, tmp_path, ["a.png"])
    assert str(tmp_path / name) in str(error.value) and reason in str(error.value)
    tally("prompts of hypernoise score").count("refused")


def test_prompts_of_hypernoise_generate_are_read_like_others(tmp_path, tally):
    (tmp_path / "p.txt").write_bytes(
        b"\xef\xbb\xbfa red circle\r\n\r\n\x1b[31mtwo\xc2\x85three\r\n"
    )
    assert prompt_files.read_prompts(("first",), tmp_path / "p.txt") == [
        "first", "a red circle", "[31mtwo three",
    ]  # fmt: skip
    for name, content in (("a.txt", b"a\n\xff"), ("b.txt", "a".encode("utf-16"))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}, line \d: this is not UTF-8"):
            prompt_files.read_prompts((), tmp_path / name)
        tally("odd prompt files").count("refused")


def write_hostile_generator(folder: Path, name: str) -> Path:
    """The tiny generator with a file of code beside it that leaves a mark where it is run."""
    shutil.copytree(EMBEDDED["tiny-sprint"], folder)
    marker = folder.parent / "marker"
    (folder / name).write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n")
    return marker


@pytest.mark.parametrize("name", ["None.py", "tokenizer/transformers.py", "vae/diffusers.py"])
def test_code_in_the_folder_of_a_generator_is_not_run(name, tmp_path, tally):
    marker = write_hostile_generator(tmp_path / "g", name)
    with pytest.raises(ValueError, match=r"contains code|contains custom code"):
        load_pipeline(str(tmp_path / "g"))
    assert not marker.exists()
    with pytest.raises(LibraryFolderError, match="contains code"):
        check_pipeline(tmp_path / "g")
    check_pipeline(EMBEDDED["tiny-sprint"])
    tally("hostile generators to commands").count("refused")


# The command line


HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eevil"


def commands(folder: Path) -> dict[str, tuple[list[str], bool]]:
    """By what they hold: arguments, and whether they are good."""
    (folder / "images").mkdir()
    (folder / "bad.txt").write_bytes(b"a\n\xff\n")
    (folder / "good.txt").write_bytes(b"\xef\xbb\xbfa red circle\r\n")
    long_prompt = f"{HOSTILE} " + "word " * 500
    return {
        "a hostile prompt": (["generate", "--prompts", HOSTILE, "--out", "o1"], True),
        "a prompt like a flag": (["generate", "--prompts", "-a red circle", "--b c", "--out=o7"],
                                 True),
        "a hostile flag": (["generate", f"--prompt{HOSTILE}", "a"], False),
        "a hostile command": ([HOSTILE], False),
        "many shapes of text": (["generate", "--prompts", long_prompt, "", "--out", "o2"], True),
        "a file with a mark": (["generate", "--prompts-file", "good.txt", "--out", "o3"], True),
        "bytes": (["generate", "--prompts", os.fsdecode(b"caf\xe9"), "--out", "o4"], False),
        "a file of bytes": (["generate", "--prompts-file", "bad.txt", "--out", "o5"], False),
        "a hostile folder": (["score", HOSTILE, "--prompts", "good.txt"], False),
        "a hostile reward": (["score", "images", "--prompts", "good.txt", "--rewards", HOSTILE],
                             False),
        "a hostile model": (["generate", "--prompts", "a", "--model", HOSTILE], False),
        "a hostile adapter": (["info", f"{HOSTILE}.safetensors"], False),
        "a hostile task": (["train", "--task", HOSTILE, "--save-dir", "o6"], False),
    }  # fmt: skip


def test_commands_end_well_or_with_one_message_and_obey_no_prompt(tmp_path, tally):
    counted = tally("hostile command lines")
    for name, (arguments, is_good) in commands(tmp_path).items():
        result = hypernoise(*arguments, cwd=tmp_path)
        output = (result.stdout + result.stderr).encode(errors="surrogateescape")
        assert result.returncode == (0 if is_good else 2), (name, output.decode())
        assert b"Traceback" not in output, (name, output.decode())
        for sequence in (b"\x1b]0;", b"\x1b[2J", b"\xc2\x9b", "\u202e".encode()):
            assert sequence not in output, (name, output)
        counted.count("worked" if is_good else "refused")
