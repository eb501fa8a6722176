"""Widget values, files and links as a stranger's workflow or model archive may bring them."""

import json
import os
import shutil
import socket
import stat
import tempfile
import time
from pathlib import Path

import pytest

from hypernoise.tests.comfyui.stand_ins import FILE

HYPERNOISE, SANA_SPRINT = "hypernoise", "sana_sprint"
SANA = {"_class_name": "SanaSprintPipeline"}
PATHS = [
    "", ".", "..", "../file.safetensors", "../../etc/passwd", "a/../file.safetensors",
    "a/../../../file.safetensors", "/etc/passwd", "//server/share/x.safetensors", "/",
    "\\\\server\\share\\x.safetensors", "..\\..\\x.safetensors", "C:\\x.safetensors", "c:x",
    "C:/x.safetensors", "\\\\?\\C:\\x", "file:///etc/passwd", "~/x.safetensors", "./" + FILE,
    FILE + "\0", "\0", FILE + "\0.png", FILE + "/", FILE + " ", " " + FILE, FILE + "\n", FILE + ".",
    "%2e%2e%2f" + FILE, "..%2f" + FILE, "\x1b[2J", "\ud800", "\u202e" + FILE, "a" * 5000,
    "{0}", "%s", "$HOME", "`id`", "; rm -rf x", "CON", "NUL", "file.safetensors:stream",
    "FILE.safetensors", "File.safetensors", "file.SAFETENSORS", "ﬁle.safetensors",
]  # fmt: skip


@pytest.fixture
def folders(comfy):
    return comfy.ours("nodes.model_folders")


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """The only registered folder of each kind."""
    import folder_paths

    for kind in (HYPERNOISE, SANA_SPRINT, "diffusers"):
        path = tmp_path / "models" / kind
        path.mkdir(parents=True)
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(path)], set()))
    return tmp_path / "models"


@pytest.fixture
def outside(tmp_path, models) -> Path:
    """A good hypernetwork and a good generator where no widget may reach."""
    folder = tmp_path / "outside"
    shutil.copytree(models.folder_path, folder / "generator")
    shutil.copytree(models.adapter("peft"), folder / "peft")
    shutil.copy(models.adapter(FILE), folder / "canary.safetensors")
    return folder


def write(path: Path, content: bytes | str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def link(path: Path, target: Path | str, is_folder: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target, is_folder)
    return path


@pytest.mark.parametrize("value", PATHS)
@pytest.mark.parametrize(
    ("node", "widget", "more"),
    [
        ("HyperNoise_LoadHypernetwork", "hypernetwork", {}),
        ("HyperNoise_LoadSanaSprint", "folder", {"instruction": True, "precision": "auto"}),
    ],
)
def test_a_value_that_is_no_name_of_the_list_is_refused_and_named(comfy, node, widget, more, value):
    with pytest.raises(ValueError) as error:
        comfy.run(node, **{widget: value}, **more)
    message = str(error.value)
    assert f"{value!r:.200}" in message and "models/" in message and len(message) < 4000
    assert message.isprintable() or "\u202e" not in value  # a control character stands escaped


def test_values_from_a_generator_are_refused_or_are_in_the_list(folders):
    from hypothesis import given, settings
    from hypothesis import strategies as st

    known = folders.hypernetworks()
    parts = st.sampled_from(["..", ".", "", "a", FILE, "C:", "\0", "~", "peft", "\\", "\ud800"])
    paths = st.lists(parts, max_size=5).flatmap(
        lambda found: st.sampled_from("/\\").map(lambda separator: separator.join(found))
    )
    tried = 0

    @settings(max_examples=1000, deadline=None, database=None)
    @given(st.text(max_size=40) | paths)
    def check(value):
        nonlocal tried
        tried += 1
        if value in known:
            return
        with pytest.raises(ValueError, match="models/hypernoise"):
            folders.find(known, value, HYPERNOISE)

    check()
    assert tried >= 1000


def test_names_that_differ_in_case_or_normalisation_are_other_names(folders, root):
    import unicodedata

    name = "Ärger.safetensors"
    write(root / HYPERNOISE / unicodedata.normalize("NFC", name))
    known = folders.hypernetworks()
    for other in (unicodedata.normalize("NFD", name), name.lower(), name.upper()):
        with pytest.raises(ValueError, match="is not in models/hypernoise"):
            folders.find(known, other, HYPERNOISE)


LINKS = {
    "file": lambda root, outside: link(root / "x.safetensors", outside / "canary.safetensors"),
    "nested file": lambda root, outside: link(
        root / "a/b/x.safetensors", outside / "canary.safetensors"
    ),
    "folder": lambda root, outside: link(root / "x", outside, True) / "canary.safetensors",
    "peft folder": lambda root, outside: link(root / "x", outside / "peft", True),
    "nested folder": lambda root, outside: link(root / "a/x", outside, True) / "canary.safetensors",
    "relative": lambda root, outside: link(
        root / "x.safetensors", os.path.relpath(outside / "canary.safetensors", root)
    ),
    "chain": lambda root, outside: link(
        root / "x.safetensors",
        link(root / "y.safetensors", outside / "canary.safetensors").name,
    ),
    "chain of folders": lambda root, outside: (
        link(root / "x", link(root / "y", outside, True), True) / "canary.safetensors"
    ),
}


@pytest.mark.parametrize("kind", LINKS)
def test_a_link_out_of_the_folder_is_not_followed_and_the_remedy_is_told(
    comfy, folders, root, outside, kind
):
    path = LINKS[kind](root / HYPERNOISE, outside)
    assert not {n for n in folders.hypernetworks() if not n.endswith(folders.EMBEDDED)}
    name = path.relative_to(root / HYPERNOISE).as_posix()
    with pytest.raises(ValueError, match="extra_model_paths.yaml") as error:
        comfy.run("HyperNoise_LoadHypernetwork", hypernetwork=name)
    assert repr(name) in str(error.value)


@pytest.mark.parametrize("part", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("also", [(), ("adapter_model.bin",)])
def test_no_part_of_a_peft_folder_may_lead_out(comfy, folders, root, outside, part, also):
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        target = root / HYPERNOISE / "p" / name
        if name == part:
            link(target, outside / "peft" / name)
        else:
            write(target, (outside / "peft" / name).read_bytes())
    for name in also:
        write(root / HYPERNOISE / "p" / name, b"weights")
    assert "p" not in folders.hypernetworks()
    with pytest.raises(ValueError, match="extra_model_paths.yaml"):
        comfy.run("HyperNoise_LoadHypernetwork", hypernetwork="p")


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_no_file_of_diffusers_beside_a_configuration_may_lead_out(folders, root, outside, suffix):
    folder = root / HYPERNOISE / "p"
    for part in ("adapter_config.json", "other.safetensors"):
        write(folder / part, b"{}")
    link(folder / f"pytorch_lora_weights{suffix}", outside / "canary.safetensors")
    assert "p" not in folders.hypernetworks()


def test_a_link_to_a_file_of_the_same_folders_and_a_linked_root_are_fine(
    folders, root, outside, monkeypatch
):
    import folder_paths

    link(root / HYPERNOISE / "a.safetensors", write(root / HYPERNOISE / "b.safetensors"))
    linked = link(root.parent / "linked", outside, True)
    entry = ([str(root / HYPERNOISE), str(linked)], set())
    monkeypatch.setitem(folder_paths.folder_names_and_paths, HYPERNOISE, entry)
    link(root / HYPERNOISE / "c.safetensors", outside / "canary.safetensors")  # now registered
    found = folders.hypernetworks()
    for name in ("a", "b", "c", "canary"):
        assert f"{name}.safetensors" in found
    assert found["canary.safetensors"] == linked / "canary.safetensors"
    assert found["peft"] == linked / "peft"


def special_files(folder: Path) -> list[socket.socket]:
    """What bears the name of a file and is none."""
    os.mkfifo(folder / "fifo.safetensors")
    os.mknod(folder / "device.safetensors", stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero
    (folder / "folder.safetensors").mkdir()
    link(folder / "nothing.safetensors", folder / "gone")
    link(folder / "self.safetensors", folder / "self.safetensors")
    listener = socket.socket(socket.AF_UNIX)
    before = os.getcwd()
    os.chdir(folder)  # the name of a socket may have some hundred characters
    try:
        listener.bind("socket.safetensors")
    finally:
        os.chdir(before)
    return [listener]


def test_only_regular_files_are_listed(comfy, folders, root):
    if os.geteuid() != 0:
        pytest.skip("only root makes a device")
    opened = special_files(root / HYPERNOISE)
    write(root / HYPERNOISE / "good.safetensors")
    found = {n for n in folders.hypernetworks() if not n.endswith(folders.EMBEDDED)}
    assert found == {"good.safetensors"}
    for kind in ("fifo", "device", "folder", "nothing", "self", "socket"):
        with pytest.raises(ValueError, match=rf"{kind}\.safetensors' (is not )?in models/"):
            comfy.run("HyperNoise_LoadHypernetwork", hypernetwork=f"{kind}.safetensors")
    for listener in opened:
        listener.close()


def test_circles_of_links_and_many_files_are_listed_in_no_time(folders, root):
    """Followed, forty folders that all link to each other would never end."""
    for i in range(40):
        (root / HYPERNOISE / f"d{i}").mkdir()
    for i in range(40):
        for j in range(40):
            link(root / HYPERNOISE / f"d{i}" / f"to{j}", root / HYPERNOISE / f"d{j}", True)
    for i in range(10_000):
        (root / HYPERNOISE / f"d{i % 40}" / f"{i}.safetensors").touch()
    start = time.monotonic()
    found = folders.hypernetworks()
    assert len([n for n in found if not n.endswith(folders.EMBEDDED)]) == 10_000
    assert folders.sana_sprint_folders() is not None
    with pytest.raises(ValueError) as error:
        folders.find(found, "gone", HYPERNOISE)
    assert len(str(error.value)) < 2000
    assert time.monotonic() - start < 60  # forever, if links were followed


def test_names_that_no_widget_can_send_are_left_out(folders, root):
    folder = os.fsencode(root / HYPERNOISE)
    for name in (b"\xff\xfe.safetensors", b"new\nline.safetensors", b"\x1b[31m.safetensors"):
        with open(os.path.join(folder, name), "wb"):
            pass
    names = {n for n in folders.hypernetworks() if not n.endswith(folders.EMBEDDED)}
    assert names == set()
    json.dumps(sorted(folders.hypernetworks())).encode()


def test_a_folder_that_cannot_be_read_is_passed_over(folders, monkeypatch):
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    import folder_paths

    base = Path(tempfile.mkdtemp())  # pytest's own is closed to others
    base.chmod(0o755)
    try:
        write(base / "good.safetensors")
        write(base / "closed" / "x.safetensors")
        (base / "closed").chmod(0)
        for kind in (HYPERNOISE, SANA_SPRINT, "diffusers"):
            entry = ([str(base)], set())
            monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, entry)
        os.seteuid(65534)
        try:
            found = folders._walk(base)
            assert [sorted(files) for _, _, files in found] == [["good.safetensors"]]
        finally:
            os.seteuid(0)
    finally:
        shutil.rmtree(base)


INDEXES = {
    "empty": b"", "garbage": b"\x00\xff\x80 no json", "cut short": b'{"_class_name": "Sana',
    "utf-16": json.dumps(SANA).encode("utf-16"), "a list": b"[]", "a text": b'"SanaSprintPipeline"',
    "null": b"null", "a number": b"9" * 5000, "deep": b"[" * 200_000, "twice": b'{"a":1,"a":2}',
    "deep object": b'{"a":' * 100_000, "huge": b'{"a": "' + b"x" * (2 << 20) + b'"}',
    "class is a list": b'{"_class_name": ["pipeline", "Evil"]}',
    "class is 7": b'{"_class_name": 7}',
    "class is an object": b'{"_class_name": {"a": 1}}',
}  # fmt: skip


@pytest.mark.parametrize("kind", INDEXES)
def test_a_broken_index_closes_no_menu(folders, comfy, root, kind):
    write(root / SANA_SPRINT / "bad" / "model_index.json", INDEXES[kind])
    write(root / SANA_SPRINT / "good" / "model_index.json", json.dumps(SANA))
    names = {n for n in folders.sana_sprint_folders() if not n.endswith(folders.EMBEDDED)}
    assert names == {"good"}
    node = comfy.nodes.NODE_CLASS_MAPPINGS["HyperNoise_LoadSanaSprint"]
    (choice,) = [i for i in node.define_schema().inputs if i.id == "folder"]
    assert "good" in choice.options and "bad" not in choice.options


def test_an_index_that_is_a_pipe_or_a_folder_or_a_link_out_closes_no_menu(folders, root, outside):
    for name in ("pipe", "folder", "link", "circle"):
        (root / SANA_SPRINT / name).mkdir()
    os.mkfifo(root / SANA_SPRINT / "pipe" / "model_index.json")
    (root / SANA_SPRINT / "folder" / "model_index.json").mkdir()
    link(
        root / SANA_SPRINT / "link" / "model_index.json", outside / "generator" / "model_index.json"
    )
    link(root / SANA_SPRINT / "circle" / "model_index.json", "model_index.json")
    link(root / SANA_SPRINT / "all", outside / "generator", True)
    assert not {n for n in folders.sana_sprint_folders() if not n.endswith(folders.EMBEDDED)}


def change_json(path: Path, **entries: object) -> None:
    write(path, json.dumps({**json.loads(path.read_text()), **entries}))


CODE = "import pathlib\npathlib.Path({marker!r}).touch()\nclass Evil:\n    pass\n"


def ask_for_pipeline(folder: Path, outside: Path) -> None:
    change_json(folder / "model_index.json", text_encoder=["antigravity", "Evil"])


def ask_for_module(folder: Path, outside: Path) -> None:
    change_json(folder / "model_index.json", tokenizer=["subprocess", "Popen"])


def ask_for_auto_map(folder: Path, outside: Path) -> None:
    change_json(folder / "text_encoder/config.json", auto_map={"AutoModel": "evil.Evil"})


def ask_for_tokenizer(folder: Path, outside: Path) -> None:
    change_json(
        folder / "tokenizer/tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]}
    )


def ask_for_network(folder: Path, outside: Path) -> None:
    change_json(folder / "transformer/config.json", auto_map={"AutoModel": "evil.Evil"})


def ask_for_adapter(folder: Path, outside: Path) -> None:
    config = {"base_model_name_or_path": str(outside / "generator" / "text_encoder")}
    write(folder / "text_encoder/adapter_config.json", json.dumps(config))


def ask_for_weights(folder: Path, outside: Path) -> None:
    elsewhere = os.path.relpath(
        outside / "generator/text_encoder/model.safetensors", folder / "text_encoder"
    )
    change_json(folder / "text_encoder/config.json", transformers_weights=elsewhere)


def shards(folder: Path, part: str, name: str) -> None:
    stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
    weights = folder / part / f"{stem}.safetensors"
    weights.rename(weights.with_name("own.safetensors"))
    index = {"metadata": {}, "weight_map": {"a": "own.safetensors", "b": name}}
    write(folder / part / f"{stem}.safetensors.index.json", json.dumps(index))


def shards_above(folder: Path, outside: Path) -> None:
    elsewhere = outside / "generator/transformer/diffusion_pytorch_model.safetensors"
    shards(folder, "transformer", os.path.relpath(elsewhere, folder / "transformer"))


def shards_anywhere(folder: Path, outside: Path) -> None:
    elsewhere = outside / "generator/vae/diffusion_pytorch_model.safetensors"
    shards(folder, "vae", str(elsewhere))


def shards_of_the_text_encoder(folder: Path, outside: Path) -> None:
    shards(folder, "text_encoder", "..\\..\\model.safetensors")


def shards_of_a_variant(folder: Path, outside: Path) -> None:
    shards(
        folder, "transformer", str(outside / "generator/vae/diffusion_pytorch_model.safetensors")
    )
    index = folder / "transformer/diffusion_pytorch_model.safetensors.index.json"
    index.rename(index.with_name("diffusion_pytorch_model.safetensors.index.fp16.json"))


def linked_weights(folder: Path, outside: Path) -> None:
    name = "transformer/diffusion_pytorch_model.safetensors"
    (folder / name).unlink()
    link(folder / name, outside / "generator" / name)


def linked_part(folder: Path, outside: Path) -> None:
    shutil.rmtree(folder / "vae")
    link(folder / "vae", outside / "generator/vae", True)


def pickled(part: str, name: str):
    def change(folder: Path, outside: Path) -> None:
        import torch

        for file in (folder / part).glob("*.safetensors"):
            file.unlink()
        marker = folder.parent / "marker"

        class Evil:
            def __reduce__(self):
                return (Path.touch, (marker,))

        torch.save({"a": Evil()}, folder / part / name)

    change.__name__ = f"pickled_{part}"
    return change


def no_part(folder: Path, outside: Path) -> None:
    shutil.rmtree(folder / "tokenizer")


BROKEN = [
    ask_for_pipeline, ask_for_module, ask_for_auto_map, ask_for_tokenizer, ask_for_network,
    ask_for_adapter, ask_for_weights, shards_above, shards_anywhere, shards_of_the_text_encoder,
    shards_of_a_variant,
    linked_weights, linked_part, no_part,
    pickled("text_encoder", "pytorch_model.bin"),
    pickled("vae", "diffusion_pytorch_model.bin"),
    pickled("transformer", "diffusion_pytorch_model.bin"),
]  # fmt: skip


@pytest.mark.parametrize("change", BROKEN, ids=lambda change: change.__name__)
def test_a_generator_that_asks_for_code_or_files_elsewhere_is_refused(
    comfy, models, root, outside, tmp_path, change
):
    folder = root / SANA_SPRINT / "g"
    shutil.copytree(models.folder_path, folder)
    marker = root / SANA_SPRINT / "marker"
    change(folder, outside)
    with pytest.raises(ValueError) as error:
        comfy.run("HyperNoise_LoadSanaSprint", folder="g", instruction=True, precision="auto")
    assert str(folder) in str(error.value) and len(str(error.value)) < 1000
    assert not marker.exists()


@pytest.mark.parametrize("part", ["vae", "transformer", "text_encoder"])
def test_pickled_weights_are_not_read_where_the_others_go_by_another_name(
    comfy, models, root, part
):
    """Each library's name of the weights is known, but not to the other one."""
    import torch
    from safetensors.torch import load_file

    folder = root / SANA_SPRINT / "g"
    shutil.copytree(models.folder_path, folder)
    names = ["diffusion_pytorch_model.safetensors", "model.safetensors"]
    own, other = reversed(names) if part == "text_encoder" else names
    pickled = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
    torch.save(load_file(folder / part / own), folder / part / pickled)
    (folder / part / own).rename(folder / part / other)
    with pytest.raises((OSError, ValueError), match=r"model\.safetensors"):
        comfy.run("HyperNoise_LoadSanaSprint", folder="g", instruction=True, precision="auto")


@pytest.mark.parametrize(
    "name",
    [
        "None.py", "pipeline.py", "__init__.py", "SanaSprintPipeline.py",
        "tokenizer/transformers.py", "text_encoder/transformers.py", "transformer/diffusers.py",
        "vae/modeling.py",
    ],
)  # fmt: skip
def test_code_beside_a_good_generator_is_not_run(comfy, models, root, name):
    """Some of these names are enough for diffusers: it runs tokenizer/transformers.py."""
    folder, marker = root / SANA_SPRINT / "g", root / "marker"
    shutil.copytree(models.folder_path, folder)
    write(folder / name, CODE.format(marker=str(marker)))
    with pytest.raises(ValueError, match="contains code"):
        comfy.run("HyperNoise_LoadSanaSprint", folder="g", instruction=True, precision="auto")
    assert not marker.exists()


def test_prompts_of_the_text_encoder_are_read_as_written_or_refused(comfy, loaded):
    for text in ("", "\0", "\x1b[31m", "a\u0301" * 1000, "word " * 20_000, "\u202eabc", "{0} %s"):
        [[embeddings, _]] = comfy.nodes.CLIPTextEncode().encode(loaded.clip, text)[0]
        assert embeddings.isfinite().all()
    with pytest.raises(ValueError, match="half of a character"):
        comfy.nodes.CLIPTextEncode().encode(loaded.clip, "a \ud83d b")


# Images


def image(*shape: int, value: float = 0.5):
    import torch

    return torch.full(shape, value)


IMAGES = {
    "no image": (lambda: image(0, 64, 64, 3), "contains no images"),
    "1 x 1": (lambda: image(1, 1, 1, 3), "too small"),
    "no pixel": (lambda: image(1, 0, 64, 3), "too small"),
    "1 channel": (lambda: image(1, 64, 64, 1), "(1, 64, 64, 1)"),
    "2 dimensions": (lambda: image(64, 64), "(64, 64)"),
    "1 dimension": (lambda: image(64), "(64,)"),
    "channels first": (lambda: image(1, 3, 64, 64), "(1, 3, 64, 64)"),
    "bytes": (lambda: image(1, 64, 64, 3).byte(), "uint8"),
    "nan": (lambda: image(1, 64, 64, 3, value=float("nan")), "image 0 has values from nan"),
    "inf": (lambda: image(1, 64, 64, 3, value=float("inf")), "image 0 has values from inf"),
    "0 to 255": (lambda: image(1, 64, 64, 3, value=200.0), "image 0 has values from 200"),
    "huge": (lambda: image(1, 1, 1, 3).expand(1, 20_000, 20_000, 3), "too large"),
    "long": (lambda: image(1, 1, 1, 3).expand(1, 16, 100_000, 3), "too long"),
}


@pytest.fixture(scope="module")
def redness(comfy):
    return comfy.run("HyperNoise_LoadReward", reward="Redness (redness)", weight=1.0)[0]


@pytest.mark.parametrize("kind", IMAGES)
def test_images_that_are_none_are_refused_by_every_node_that_scores(comfy, redness, kind):
    build, reason = IMAGES[kind]
    bad = build()
    common = {"reward": [redness], "prompt": ["a"]}
    for node, inputs in (
        ("HyperNoise_ScoreImages", {"images": [bad]}),
        ("HyperNoise_BestOfN", {"images": [bad], "keep": [1]}),
        ("HyperNoise_CompareImages", {"first": [bad], "second": [bad]}),
    ):
        with pytest.raises(ValueError) as error:
            comfy.run(node, **inputs, **common)
        assert reason in str(error.value)


def test_images_of_odd_layouts_are_scored(comfy, redness):
    """Four channels, half precision, strides, gradients, a little out of range, long and narrow."""
    import torch

    with torch.inference_mode(False):
        with_gradient = torch.rand(1, 64, 64, 3, requires_grad=True)
    for images in (
        torch.rand(2, 64, 64, 4), torch.rand(1, 64, 64, 3).half(), with_gradient,
        torch.rand(1, 3, 64, 64).movedim(1, -1), torch.rand(1, 128, 128, 3)[:, ::2, ::2],
        torch.rand(1, 1, 1, 1).expand(2, 64, 64, 3), image(1, 64, 64, 3, value=1.2),
        torch.rand(1, 64, 64, 3).double(), torch.rand(1, 16, 1000, 3),
    ):  # fmt: skip
        scores, _, _ = comfy.run(
            "HyperNoise_ScoreImages", images=[images], reward=[redness], prompt=["a\x1b[2J"]
        )
        assert len(scores) == len(images)
