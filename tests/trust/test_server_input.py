"""What a running ComfyUI does with hostile values and files: it says no and goes on.

A workflow that somebody shares is a graph with any values in its widgets. Here it names files
outside of the models folders in many ways; the kernel tells whether one of them was opened.
"""

import ctypes
import json
import os
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypernoise.tests.comfyui.conftest import FOLDER_NAME, REPOSITORY, Models
from hypernoise.tests.comfyui.fetch_comfyui import comfyui_path
from hypernoise.tests.comfyui.graphs import text_to_image
from hypernoise.tests.comfyui.server import ComfyServer, Refused
from hypernoise.tests.comfyui.stand_ins import FILE, PEFT_FOLDER, write_models

pytestmark = [pytest.mark.slow, pytest.mark.comfyui]
OPENED, READ = 0x20, 0x1  # inotify's IN_OPEN and IN_ACCESS


class Watch:
    """Tells which of some files and folders were opened or read."""

    def __init__(self, folder: Path) -> None:
        if not sys.platform.startswith("linux"):
            pytest.skip("only Linux tells who reads a file")
        self._library = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._library.inotify_init1(os.O_NONBLOCK)
        self._places = {}
        for path in (folder, *folder.rglob("*")):
            number = self._library.inotify_add_watch(
                self._descriptor, os.fsencode(path), OPENED | READ
            )
            assert number >= 0
            self._places[number] = path

    def close(self) -> None:
        os.close(self._descriptor)

    def seen(self) -> set[str]:
        """Paths that were opened since the last call."""
        found = set()
        try:
            content = os.read(self._descriptor, 1 << 20)
        except BlockingIOError:
            return found
        while content:
            number, _, _, length = struct.unpack_from("iIII", content)
            name = content[16 : 16 + length].rstrip(b"\0").decode()
            found.add(str(self._places[number] / name))
            content = content[16 + length :]
        return found


@pytest.fixture(scope="module")
def outside(tmp_path_factory) -> Path:
    """Where no widget may reach: a good hypernetwork, a peft folder and a good generator."""
    return tmp_path_factory.mktemp("outside")


@pytest.fixture(scope="module")
def models(tmp_path_factory, outside: Path) -> Models:
    """A base directory full of what a stranger's archive may bring."""
    base = tmp_path_factory.mktemp("base")
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / FOLDER_NAME).symlink_to(REPOSITORY, True)
    folder, folder_path = write_models(base / "models", REPOSITORY / "assets")
    hypernetworks, generators = base / "models" / "hypernoise", base / "models" / "sana_sprint"
    shutil.copy(hypernetworks / FILE, outside / "canary.safetensors")
    shutil.copytree(hypernetworks / PEFT_FOLDER, outside / "peft")
    shutil.copytree(folder_path, outside / "generator")
    (hypernetworks / "link.safetensors").symlink_to(outside / "canary.safetensors")
    (hypernetworks / "links").symlink_to(outside, True)
    (hypernetworks / "chain.safetensors").symlink_to("link.safetensors")
    (hypernetworks / "circle").symlink_to(hypernetworks, True)
    (hypernetworks / "folder.safetensors").mkdir()
    os.mkfifo(hypernetworks / "pipe.safetensors")
    for name, content in {
        "garbage": b"\xff\x00",
        "list": b"[]",
        "deep": b"[" * 100_000,
        "class": b'{"_class_name": ["evil", "Evil"]}',
        "huge": b'{"a": "' + b"x" * (2 << 20) + b'"}',
    }.items():
        (generators / name).mkdir(parents=True)
        (generators / name / "model_index.json").write_bytes(content)
    (generators / "pipe").mkdir()
    os.mkfifo(generators / "pipe" / "model_index.json")
    (generators / "link").symlink_to(outside / "generator", True)
    code = f"import pathlib\npathlib.Path({str(base / 'marker')!r}).touch()\nclass Evil: pass\n"
    for name, changes in {
        "code": {},
        "auto map": {"text_encoder/config.json": {"auto_map": {"AutoModel": "evil.Evil"}}},
        "module": {"model_index.json": {"text_encoder": ["evil", "Evil"]}},
        "shards": {
            "transformer/diffusion_pytorch_model.safetensors.index.json": {
                "metadata": {}, "weight_map": {
                    "a": str(outside / "generator/transformer/diffusion_pytorch_model.safetensors")
                },
            }
        },
    }.items():  # fmt: skip
        shutil.copytree(folder_path, generators / name)
        if name in ("code", "module"):
            (generators / name / "text_encoder" / "evil.py").write_text(code)
            (generators / name / "None.py").write_text(code)
        for file, entries in changes.items():
            path = generators / name / file
            known = json.loads(path.read_text()) if path.is_file() else {}
            path.write_text(json.dumps({**known, **entries}))
    shutil.copytree(folder_path, generators / "linked part")
    part = generators / "linked part" / "transformer"
    shutil.rmtree(part)
    part.symlink_to(outside / "generator" / "transformer", True)
    return Models(base, folder, folder_path)


@pytest.fixture(scope="module")
def server(models: Models) -> Iterator[ComfyServer]:
    with ComfyServer(comfyui_path(), models.base) as running:
        yield running


@pytest.fixture
def watch(server: ComfyServer, models: Models, outside: Path) -> Iterator[Watch]:
    """Nothing outside is opened, and afterwards the server still works."""
    watched = Watch(outside)
    yield watched
    assert not watched.seen()
    run = server.run(text_to_image(models.folder, hypernetworks=((FILE, 1.0),)))
    assert run.error is None
    assert not watched.seen()
    (outside / "canary.safetensors").read_bytes()
    assert watched.seen()  # the eye is open
    watched.close()


@pytest.fixture
def quiet(server: ComfyServer) -> Iterator[None]:
    """What the server writes meanwhile holds no traceback."""
    before = len(server.log())
    yield
    assert "Traceback" not in server.log()[before:]


def values(outside: Path) -> list[object]:
    """For the widget of a hypernetwork."""
    canary = str(outside / "canary.safetensors")
    up = os.path.relpath(canary, "/tmp/a/b/c/d/e/f/g")
    return [
        canary, f"/{canary}", up, f"../{up}", f"a/../../{up}", f"links/../{up}", canary + "\0",
        FILE + "\0", f"file://{canary}", "link.safetensors", "links/canary.safetensors",
        "links/peft", "links", "chain.safetensors", f"circle/{FILE}", f"circle/circle/{FILE}",
        "folder.safetensors", "pipe.safetensors", "C:\\x.safetensors", "\\\\server\\x.safetensors",
        FILE.upper(), FILE + " ", "./" + FILE, "", " ", "..", "/", "\x1b[2J\x1b]0;owned\x07",
        "\ud800", "\u202e", "%s{0}", "<script>alert(1)</script>", "a" * 100_000, None, 7, True,
        -1.5, {"a": 1}, {"__value__": [canary, 0]}, {"__value__": canary}, [], [[]], ["a"],
    ]  # fmt: skip


def test_a_hypernetwork_s_name_that_is_not_in_the_list_is_refused(
    server, models, outside, watch, quiet, tally
):
    counted = tally("hostile values to the server")
    for value in values(outside):
        graph = text_to_image(models.folder, hypernetworks=((FILE, 1.0),))
        graph["load0"]["inputs"]["hypernetwork"] = value
        with pytest.raises(Refused) as error:
            server.run(graph)
        answer = json.loads(str(error.value))
        assert "load0" in answer["node_errors"], answer
        counted.count("refused")


def test_a_generator_s_name_that_is_not_in_the_list_is_refused(
    server, models, outside, watch, quiet, tally
):
    counted = tally("hostile values to the server")
    names = ["link", "garbage", "list", "deep", "class", "huge", "pipe", str(outside / "generator")]
    for value in [*names, "link/../../../outside", "", "\ud800", "\0", None, 7, {"a": 1}, ["a"]]:
        graph = text_to_image(models.folder)
        graph["model"]["inputs"]["folder"] = value
        with pytest.raises(Refused) as error:
            server.run(graph)
        assert "model" in json.loads(str(error.value))["node_errors"]
        counted.count("refused")


def test_a_generator_that_asks_for_code_or_files_elsewhere_is_refused(server, models, watch, tally):
    for value, reason in {
        "code": "contains code",
        "auto map": "auto_map",
        "module": "contains code",
        "shards": "as a shard",
        "linked part": "extra_model_paths.yaml",
    }.items():
        run = server.run(text_to_image(value))
        assert run.error["node_id"] == "model" and reason in run.error["exception_message"]
        tally("hostile generators to the server").count("refused")
    assert not (models.base / "marker").exists()


def test_the_menus_offer_what_is_good_and_nothing_else(server, models, watch, quiet):
    info = server.object_info()

    def options(node: str, widget: str) -> list[str]:
        first, more = info[node]["input"]["required"][widget]
        return first if isinstance(first, list) else more["options"]

    names = options("HyperNoise_LoadHypernetwork", "hypernetwork")
    folders = options("HyperNoise_LoadSanaSprint", "folder")
    assert FILE in names and PEFT_FOLDER in names and models.folder in folders
    for bad in ("link", "chain", "circle", "folder", "pipe", "canary"):
        assert not [name for name in names if bad in name]
    for bad in ("link", "garbage", "list", "deep", "class", "huge", "pipe"):
        assert bad not in folders


PROMPTS = [
    "", " ", "\0", "\x1b[2J\x1b]0;owned\x07", "\u202eabc", "e" + "\u0301" * 200, "👩‍👩‍👧" * 50,
    "<script>alert(1)</script>", "$(touch x); `id`", "{0} %s %n", "(a:1e999) [b] <lora:x:1>",
    "embedding:../../x", "word " * 20_000, "a" * 100_000,
]  # fmt: skip


def test_prompts_of_every_kind_are_encoded_and_scored_or_refused(server, models, watch, tally):
    counted = tally("hostile prompts to the server")
    for i, prompt in enumerate([*PROMPTS, "a \ud800 b"]):
        graph = text_to_image(models.folder, prompt=prompt, seed=i)
        graph["reward"] = {
            "class_type": "HyperNoise_LoadReward",
            "inputs": {"reward": "tiny-preference (embedded)", "weight": 1.0},
        }
        graph["score"] = {
            "class_type": "HyperNoise_ScoreImages",
            "inputs": {"images": ["decode", 0], "reward": ["reward", 0], "prompt": prompt},
        }
        run = server.run(graph)
        if "\ud800" in prompt:
            assert "half of a character" in run.error["exception_message"]
            counted.count("refused")
        else:
            assert run.error is None, run.error
            counted.count("worked")
    for sequence in ("\x1b[2J", "\x1b]0;owned"):
        assert sequence not in server.log()
