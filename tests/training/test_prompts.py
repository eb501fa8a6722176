"""Where training prompts come from: named tasks, files of every kind, data sets, and bad ones."""

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from hypernoise.training.prompts import NAMED_TASKS, load_prompts, tiny_world_captions
from hypernoise.training.tiny_world.captions import CATEGORIES, captions_by_category, parse_caption

PROMPTS = ["a red circle", "two cats, asleep", 'a "blue" square', "ein grüner Bär"]
MESSY = [" a red circle ", "two cats, asleep", "", 'a "blue" square', "   ", "two cats, asleep\t"]
MESSY += ["ein grüner Bär", "a red circle"]


def write(path: Path, text: str, encoding: str = "utf-8") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return str(path)


def write_csv(path: Path, rows: list[list[str]]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return str(path)


def write_parquet(path: Path, columns: dict[str, list]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return str(path)


def as_lines(values: list) -> str:
    return "\n".join(json.dumps(value) for value in values) + "\n"


WRITERS = {
    "lines.txt": lambda path: write(path, "\n".join(MESSY)),
    "BOM.TXT": lambda path: write(path, "\r\n".join(MESSY), "utf-8-sig"),
    "list.json": lambda path: write(path, json.dumps(MESSY)),
    "bom.json": lambda path: write(path, json.dumps(MESSY, ensure_ascii=False), "utf-8-sig"),
    "objects.json": lambda path: write(path, json.dumps([{"x": 1, "prompt": p} for p in MESSY])),
    "object.json": lambda path: write(path, json.dumps(dict(enumerate(MESSY)), indent=1)),
    "texts.jsonl": lambda path: write(path, as_lines(MESSY) + "\n"),
    "objects.jsonl": lambda path: write(path, as_lines([{"caption": p, "n": 1} for p in MESSY])),
    "objects of objects.json": lambda path: write(
        path, json.dumps({f"id{i}": {"category": "x", "prompt": p} for i, p in enumerate(MESSY)})
    ),
    "table.tsv": lambda path: write(path, "".join(f"{p.strip()}\t1\n" for p in ["prompt", *MESSY])),
    "table.csv": lambda path: write_csv(path, [["n", "prompt"], *([str(1), p] for p in MESSY)]),
    "table.parquet": lambda path: write_parquet(
        path, {"image": [b""] * (len(MESSY) + 1), "caption": [*MESSY, None]}
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_its_prompts_in_order_and_once(name, tmp_path):
    task = WRITERS[name](tmp_path / name)
    assert load_prompts(task) == PROMPTS


@pytest.mark.parametrize("name", [name for name in WRITERS if "table" in name or "objects" in name])
def test_the_column_can_be_named_and_a_wrong_one_is_told_with_those_there_are(name, tmp_path):
    task = WRITERS[name](tmp_path / name)
    there = "caption" if name in ("objects.jsonl", "table.parquet") else "prompt"
    assert load_prompts(task, column=there) == PROMPTS
    with pytest.raises(ValueError, match=rf"{name}.* no column words, only .*{there}"):
        load_prompts(task, column="words")


def test_prompt_goes_before_caption_and_caption_before_text(tmp_path):
    rows = [["text", "caption", "prompt"], ["t", "c", "p"]]
    assert load_prompts(write_csv(tmp_path / "a.csv", rows)) == ["p"]
    assert load_prompts(write_csv(tmp_path / "b.csv", [row[:2] for row in rows])) == ["c"]
    assert load_prompts(write_csv(tmp_path / "c.csv", [row[:1] for row in rows])) == ["t"]
    with pytest.raises(ValueError, match=r"no column prompt or caption or text, only words, n"):
        load_prompts(write_csv(tmp_path / "d.csv", [["words", "n"], ["w", "1"]]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"good\nb\xffd\n", r"a\.txt, line 2: this is not UTF-8"),
        ("a.txt", "good".encode("utf-16"), r"a\.txt, line 1: this is not UTF-8"),
        (
            "a.txt",
            b"good\n\nwi\x00th\n",
            r"a\.txt, line 3: a prompt cannot contain the character '\\x00'",
        ),
        ("a.txt", b"\n  \n", r"a\.txt contains no prompts"),
        ("a.json", b'["a",\n "b",,]', r"a\.json, line 2: invalid JSON"),
        ("a.json", b"7", r"a\.json contains neither a list nor an object"),
        ("a.json", b'["a", 7]', r"a\.json, entry 2: a prompt must be a string, not 7"),
        ("a.json", b'{"prompts": ["a"]}', r"a\.json, key 'prompts': a prompt must be a string"),
        ("a.json", b'["\\ud800"]', r"a\.json, entry 1: a prompt cannot contain the character"),
        ("a.json", b"[]", r"a\.json contains no prompts"),
        ("a.jsonl", b'"a"\n\n"b', r"a\.jsonl, line 3: invalid JSON"),
        (
            "a.jsonl",
            b'{"prompt": "a"}\n{"x": "b"}',
            r"a\.jsonl, line 2: there is no key prompt, only x",
        ),
        (
            "a.jsonl",
            b'{"prompt": "a"}\n{"prompt": ["b"]}',
            r"a\.jsonl, line 2: a prompt must be a string",
        ),
        ("a.csv", b"prompt\ntwo cats, asleep\n", r"a\.csv, line 2: 2 values for 1 columns"),
        ("a.csv", b"n,prompt\n1,good\n2\n", r"a\.csv, line 3: 1 values for 2 columns"),
        ("a.csv", b'n,prompt\n1,"good\n', r"a\.csv, line 2: invalid CSV"),
        ("a.csv", b"", r"a\.csv has no column prompt or caption or text, only none"),
        ("a.parquet", b"PAR1 and then nothing", r"a\.parquet is damaged or not a \.parquet file"),
        ("a.parquet", b"", r"a\.parquet is damaged or not a \.parquet file"),
    ],
)
def test_a_broken_file_is_refused_with_its_name_and_line(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_prompts(str(tmp_path / name))


def test_a_parquet_file_cut_short_is_refused(tmp_path):
    task = write_parquet(tmp_path / "a.parquet", {"prompt": PROMPTS})
    content = Path(task).read_bytes()
    Path(task).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"a\.parquet is damaged"):
        load_prompts(task)


def test_line_breaks_and_tabs_inside_a_prompt_and_very_long_ones_are_kept(tmp_path):
    prompts = ["first\nsecond\tthird", "word " * 4000 + "end"]
    assert load_prompts(write(tmp_path / "a.json", json.dumps(prompts))) == prompts
    assert load_prompts(write_csv(tmp_path / "a.csv", [["text"], *([p] for p in prompts)])) == (
        prompts
    )


def test_the_examples_are_thirty_different_prompts():
    prompts = load_prompts("example-prompts")
    assert len(prompts) == len(set(prompts)) == 30


@pytest.mark.parametrize(
    ("task", "held_out", "each"), [("tiny-world", False, 1000), ("tiny-world-held-out", True, 80)]
)
def test_the_tiny_world_s_categories_weigh_the_same(task, held_out, each):
    captions = [parse_caption(prompt) for prompt in load_prompts(task)]
    assert Counter(caption.category for caption in captions) == dict.fromkeys(CATEGORIES, each)
    assert {caption.held_out for caption in captions} == {held_out}
    assert [c.text for c in captions] == load_prompts(task)
    for category, pool in captions_by_category(held_out=held_out).items():
        times = Counter(c.text for c in captions if c.category == category)
        assert len(times) == min(each, len(pool))
        assert max(times.values()) - min(times.values()) <= 1


def test_a_smaller_share_of_the_tiny_world_has_as_many_of_each_category():
    captions = tiny_world_captions(held_out=True, per_category=3)
    assert [c.category for c in captions] == [name for name in CATEGORIES for _ in range(3)]


def publish(folder: Path) -> None:
    """The layouts in which people download the published prompts."""
    lines = [{"tag": "counting", "include": [], "prompt": f"a photo of {n} bears"} for n in (2, 3)]
    write(folder / "geneval/prompts/evaluation_metadata.jsonl", as_lines(lines))
    for name in ("color", "complex", "texture", "shape", "spatial", "non_spatial", "numeracy"):
        text = f"a {name} one\na shared one\na {name} two \n"
        write(folder / f"T2I-CompBench/examples/dataset/{name}_train.txt", text)
        write(folder / f"T2I-CompBench/examples/dataset/{name}_val.txt", "not for training\n")
    write(folder / "Structured-Diffusion-Guidance/ABC-6K.txt", "a blue sink .\na color one\n")
    write(folder / "pickapic/pickapic_prompts.json", json.dumps({"0": "dragon", "1": "dragon"}))


def test_published_prompts_are_read_as_they_are_downloaded(tmp_path):
    publish(tmp_path)
    bears = ["a photo of 2 bears", "a photo of 3 bears"]
    assert load_prompts("geneval", data_dir=tmp_path) == bears
    assert load_prompts("geneval", data_dir=tmp_path / "geneval") == bears
    assert load_prompts("pickapic", data_dir=tmp_path) == ["dragon"]
    everything = load_prompts("all", data_dir=tmp_path)
    assert everything[:4] == ["a color one", "a shared one", "a color two", "a complex one"]
    assert everything[-4:] == ["a numeracy one", "a numeracy two", "a blue sink .", "dragon"]
    assert len(everything) == len(set(everything)) == 7 * 2 + 1 + 1 + 1


@pytest.mark.parametrize("layout", ["pickapic_v2/data", "pickapic_v2", "pickapic", ".", "data"])
def test_pick_a_pic_s_own_files_give_the_captions_of_the_training_split(layout, tmp_path):
    folder = tmp_path / layout
    for i, caption in enumerate(["an owl", "a dragon"]):
        images = [b"never decoded"] * 2
        write_parquet(
            folder / f"train-0000{i}-of-00002-b66ac786.parquet",
            {"caption": [caption, "an owl"], "jpg_0": images},
        )
    for split in ("validation", "validation_unique", "test", "test_unique"):
        write_parquet(folder / f"{split}-00000-of-00001-7e93.parquet", {"caption": ["unseen"]})
    assert load_prompts("pickapic", data_dir=tmp_path) == ["an owl", "a dragon"]


@pytest.mark.parametrize(
    ("task", "lost", "source"),
    [
        ("geneval", "geneval/prompts/evaluation_metadata.jsonl", "djghosh13/geneval"),
        (
            "all",
            "T2I-CompBench/examples/dataset/non_spatial_train.txt",
            "Karine-Huang/T2I-CompBench",
        ),
        (
            "all",
            "Structured-Diffusion-Guidance/ABC-6K.txt",
            "weixi-feng/Structured-Diffusion-Guidance",
        ),
        ("all", "pickapic/pickapic_prompts.json", "yuvalkirstain/pickapic_v2"),
    ],
)
def test_a_missing_published_file_is_named_with_where_people_get_it(task, lost, source, tmp_path):
    publish(tmp_path)
    (tmp_path / lost).unlink()
    with pytest.raises(FileNotFoundError) as error:
        load_prompts(task, data_dir=tmp_path)
    for part in (Path(lost).name, str(tmp_path), source):
        assert part in str(error.value)


@pytest.mark.parametrize("task", ["geneval", "pickapic", "all"])
def test_published_prompts_need_data_dir(task):
    with pytest.raises(ValueError, match="data_dir is not set"):
        load_prompts(task)


def test_a_folder_of_data_files_is_read_as_a_data_set_of_the_hub(tmp_path):
    for split, prompts in (("train", MESSY), ("test", ["not for training"])):
        columns = {"image": [b"x"] * len(prompts), "caption": prompts}
        write_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet", columns)
    assert load_prompts(str(tmp_path / "data")) == PROMPTS
    with pytest.raises(ValueError, match="no column words, only image, caption"):
        load_prompts(str(tmp_path / "data"), column="words")
    write(tmp_path / "lines" / "a.jsonl", as_lines([{"words": prompt} for prompt in MESSY]))
    assert load_prompts(str(tmp_path / "lines"), column="words") == PROMPTS


def test_a_folder_is_read_without_what_its_readme_asks_for_and_without_other_splits(tmp_path):
    write(tmp_path / "README.md", "---\nconfigs: [{data_files: ../elsewhere.txt}]\n---\n")
    write(tmp_path.parent / "elsewhere.txt", "from outside")
    write(tmp_path / "a.txt", "\ufeffa fox\r\na cake\r\n")
    write(tmp_path / "b" / "c.txt", "\ufeffa dog\n")
    write(tmp_path / "test.txt", "not for training")
    write(tmp_path / ".cache" / "d.txt", "hidden")
    assert load_prompts(str(tmp_path)) == ["a fox", "a cake", "a dog"]
    write(tmp_path / "e.csv", "prompt\na cat\n")
    with pytest.raises(ValueError, match=r"the dataset .* contains \.csv and \.txt files"):
        load_prompts(str(tmp_path))
    write(tmp_path / "only" / "validation.jsonl", '"x"')
    with pytest.raises(ValueError, match="of the split train, only of others"):
        load_prompts(str(tmp_path / "only"))


def test_links_out_of_a_folder_are_refused_but_for_those_of_the_hub_s_cache(tmp_path):
    snapshot = tmp_path / "datasets--a--b" / "snapshots" / "c0ffee"
    blob = tmp_path / "datasets--a--b" / "blobs" / "abc"
    write(blob, "a fox\n")
    for folder in (snapshot / "data", tmp_path / "mine"):
        folder.mkdir(parents=True)
        (folder / "a.txt").symlink_to(blob)
    write(tmp_path / "mine" / "b.txt", "a cake\n")
    assert load_prompts(str(snapshot)) == load_prompts(str(snapshot / "data")) == ["a fox"]
    with pytest.raises(ValueError, match=r"link out of the folder, .*mine/a\.txt, which is not"):
        load_prompts(str(tmp_path / "mine"))
    (tmp_path / "mine" / "a.txt").unlink()
    (tmp_path / "mine" / "a.txt").symlink_to("b.txt")
    assert load_prompts(str(tmp_path / "mine")) == ["a cake"]


def test_a_damaged_data_set_is_told_with_the_reason(tmp_path):
    write(tmp_path / "bad" / "a.jsonl", '{"prompt": "a"}\n{"prompt"')
    with pytest.raises(ValueError, match="cannot read the dataset .*bad: .*JSON"):
        load_prompts(str(tmp_path / "bad"))


def test_a_folder_without_data_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="the dataset .*empty contains no prompt files"):
        load_prompts(str(tmp_path / "empty"))


def test_a_data_set_that_cannot_be_reached_is_told_by_name(tmp_path):
    """In a process of its own: the library reads the variable when it is imported."""
    script = (
        "from hypernoise.training.prompts import load_prompts\n"
        "try:\n    load_prompts('nobody/no-such-prompts')\n"
        "except ValueError as error:\n    print('refused:', error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
    )
    assert result.stdout.startswith(
        "refused: cannot read the split train of nobody/no-such-prompts"
    ), result.stderr


@pytest.mark.parametrize(
    ("package", "name"), [("pyarrow", "a.parquet"), ("datasets", "nobody/prompts")]
)
def test_a_missing_library_is_told_with_its_command(package, name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    write_parquet(tmp_path / "a.parquet", {"prompt": PROMPTS})
    task = str(tmp_path / name) if name == "a.parquet" else name
    with pytest.raises(ImportError, match=f"pip install {package}"):
        load_prompts(task)


def test_a_file_that_is_not_there_is_named(tmp_path):
    for task in (str(tmp_path / "no.txt"), "prompts/no-such-file.jsonl"):
        with pytest.raises(FileNotFoundError, match=Path(task).name):
            load_prompts(task)


def test_an_unknown_task_is_told_what_there_is(tmp_path):
    unknown = write(tmp_path / "prompts.docx", "a")
    for task in ("genevel", unknown):
        with pytest.raises(ValueError) as error:
            load_prompts(task)
        for part in (*NAMED_TASKS, ".txt", ".jsonl", ".parquet", "owner/name"):
            assert part in str(error.value)


def test_control_characters_in_people_s_prompts_count_as_whitespace(tmp_path):
    (tmp_path / "a.txt").write_bytes("a bell\x07 and\x85 more\x7f\n".encode())
    assert load_prompts(str(tmp_path / "a.txt")) == ["a bell  and  more"]
