"""Weights of rewards: found offline, checked, and clear about what is wrong with them."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from hypernoise.hypernoise_core.errors import TensorFileError
from hypernoise.hypernoise_core.rewards import WeightStore, load_rewards, reward_identities
from hypernoise.hypernoise_core.rewards.clip_score import ClipScore
from hypernoise.hypernoise_core.rewards.hps import load_open_clip
from hypernoise.hypernoise_core.rewards.image_reward import BertTokenizer, load_image_reward
from hypernoise.hypernoise_core.rewards.weights import WeightFile
from hypernoise.tests.rewards import stand_ins

CONFIG, WEIGHTS = ClipScore.files
# Of a seed of their own: modules that are collected before may draw as well.
IMAGES = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a red circle", "two squares"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    """An empty Hugging Face cache, and no hub."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    stand_ins.write_clip(folder)
    return folder


def fill(cache: Path, clip_folder: Path) -> Path:
    """Both files of CLIPScore; returns the blob of the weights."""
    stand_ins.into_cache(cache, CONFIG, (clip_folder / CONFIG.name).read_bytes())
    return stand_ins.into_cache(cache, WEIGHTS, (clip_folder / WEIGHTS.name).read_bytes())


def into_folder(folder: Path, clip_folder: Path) -> Path:
    """Both files of CLIPScore as a user lays them there; returns the weights."""
    for file in ClipScore.files:
        target = file.inside(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((clip_folder / file.name).read_bytes())
    return WEIGHTS.inside(folder)


def test_weights_come_from_the_cache_and_from_a_folder_alike(cache, clip_folder, tmp_path):
    fill(cache, clip_folder)
    into_folder(tmp_path / "mine", clip_folder)
    from_cache = load_rewards({"clip": 1.0}).score(IMAGES, PROMPTS)
    from_folder = load_rewards({"clip": 1.0}, tmp_path / "mine").score(IMAGES, PROMPTS)
    assert torch.equal(from_cache, from_folder)


def test_a_folder_comes_before_the_cache_and_the_cache_before_an_error(
    cache, clip_folder, tmp_path
):
    blob = fill(cache, clip_folder)
    store = WeightStore(tmp_path / "mine")
    assert store.find(WEIGHTS).resolve() == blob
    into_folder(tmp_path / "mine", clip_folder)
    assert store.find(WEIGHTS) == WEIGHTS.inside(tmp_path / "mine")


def test_of_several_folders_the_first_that_has_a_file_counts(cache, clip_folder, tmp_path):
    folders = [tmp_path / name for name in ("empty", "first", "second")]
    for folder in folders[1:]:
        into_folder(folder, clip_folder)
    assert WeightStore(folders).find(WEIGHTS) == WEIGHTS.inside(folders[1])


def test_the_published_commit_in_the_cache_goes_before_the_newest(cache):
    newest = stand_ins.into_cache(cache, CONFIG, b"newest")
    published = newest.parents[1] / "snapshots" / CONFIG.revision / CONFIG.name
    store = WeightStore()
    assert store.find(CONFIG).read_bytes() == b"newest"
    published.parent.mkdir()
    published.write_bytes(b"published")
    assert store.find(CONFIG).read_bytes() == b"published"


def test_an_identity_is_that_of_the_files_in_the_folder(cache, clip_folder, tmp_path):
    fill(cache, clip_folder)
    path = into_folder(tmp_path / "mine", clip_folder)
    of_cache = reward_identities(["clip"])
    assert reward_identities(["clip"], tmp_path / "mine") == of_cache
    flip(path, -1000)
    assert reward_identities(["clip"], tmp_path / "mine") != of_cache


def test_a_missing_file_names_repository_file_places_and_command(cache, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load_rewards({"clip": 1.0}, tmp_path / "mine")
    message = str(error.value)
    for part in (
        CONFIG.repository,
        CONFIG.name,
        str(tmp_path / "mine" / "CLIP-ViT-H-14-laion2B-s32B-b79K" / CONFIG.name),
        str(cache),
        "hypernoise download rewards clip",
    ):
        assert part in message


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x55
    path.write_bytes(content)


def test_a_flipped_byte_in_the_cache_is_found_by_the_name_of_the_blob(cache, clip_folder):
    blob = fill(cache, clip_folder)
    flip(blob, -1000)
    with pytest.raises(TensorFileError, match=f"SHA-256 is .*published is {blob.name}"):
        load_rewards({"clip": 1.0})


def test_a_flipped_byte_in_a_folder_is_found_by_the_hub_s_record(cache, clip_folder, tmp_path):
    path = into_folder(tmp_path / "mine", clip_folder)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    record = path.parent / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"
    record.parent.mkdir(parents=True)
    record.write_text(f"c0ffee\n{sha256}\n1712656091.123\n")
    load_rewards({"clip": 1.0}, tmp_path / "mine")
    flip(path, -1000)
    with pytest.raises(TensorFileError, match=f"published is {sha256}"):
        load_rewards({"clip": 1.0}, tmp_path / "mine")


def test_a_known_size_and_checksum_is_held_against_the_file(cache, tmp_path):
    content = b"weights"
    known = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    file = WeightFile("owner/name", "a/b.pt", **known)
    path = file.inside(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    store = WeightStore(tmp_path)
    assert store.find(file) == path
    path.write_bytes(content[:-1])
    with pytest.raises(TensorFileError, match="6 bytes instead of 7"):
        store.find(file)
    path.write_bytes(b"wEights")
    with pytest.raises(TensorFileError, match="SHA-256"):
        store.find(file)


def test_a_truncated_safetensors_file_is_named(cache, clip_folder, tmp_path):
    path = into_folder(tmp_path / "mine", clip_folder)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(TensorFileError, match=f"{path} is damaged, truncated"):
        load_rewards({"clip": 1.0}, tmp_path / "mine")


@pytest.mark.parametrize("change", ["missing", "reshaped"])
def test_weights_of_another_network_are_named(cache, clip_folder, tmp_path, change):
    path = into_folder(tmp_path / "mine", clip_folder)
    tensors = load_file(path)
    name = "visual_projection.weight"
    removed = tensors.pop(name)
    if change == "reshaped":
        tensors[name] = removed[:, :-1].contiguous()
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(TensorFileError, match="visual_projection"):
        load_rewards({"clip": 1.0}, tmp_path / "mine")


def test_a_damaged_configuration_is_named(cache, clip_folder, tmp_path):
    into_folder(tmp_path / "mine", clip_folder)
    CONFIG.inside(tmp_path / "mine").write_text("{")
    with pytest.raises(TensorFileError, match="config.json"):
        load_rewards({"clip": 1.0}, tmp_path / "mine")


def load_hps(path: Path):
    return load_open_clip(stand_ins.OPEN_CLIP, path)


def load_blip(path: Path):
    return load_image_reward(stand_ins.VISION, stand_ins.TEXT, path, None)


@pytest.fixture
def checkpoints(tmp_path: Path) -> dict:
    """Loader and file of the two rewards that come as .pt."""
    torch.manual_seed(0)
    hps, blip = tmp_path / "HPS_v2.1_compressed.pt", tmp_path / "ImageReward.pt"
    stand_ins.write_hps(hps)
    torch.save(stand_ins.image_reward_tensors(stand_ins.VISION, stand_ins.TEXT), blip)
    return {"hps": (load_hps, hps), "imagereward": (load_blip, blip)}


@pytest.mark.parametrize("name", ["hps", "imagereward"])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.97])
def test_a_truncated_checkpoint_is_named(checkpoints, name, share):
    load, path = checkpoints[name]
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(TensorFileError, match=f"{path.name} is damaged"):
        load(path)


@pytest.mark.parametrize("name", ["hps", "imagereward"])
def test_a_checkpoint_that_would_run_code_is_refused(checkpoints, name):
    load, path = checkpoints[name]
    torch.save({"state_dict": {"a": Path}}, path)
    with pytest.raises(TensorFileError, match="can run code"):
        load(path)


@pytest.mark.parametrize("change", ["missing", "extra", "reshaped"])
@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("hps", "visual.proj"),
        ("imagereward", "blip.visual_encoder.blocks.1.attn.qkv.weight"),
        ("imagereward", "blip.text_encoder.encoder.layer.0.crossattention.self.key.bias"),
        ("imagereward", "mlp.layers.7.weight"),
    ],
)
def test_a_checkpoint_whose_weights_do_not_fit_names_them(checkpoints, name, key, change):
    load, path = checkpoints[name]
    saved = torch.load(path, weights_only=True)
    tensors = saved.get("state_dict", saved)
    if change == "missing":
        del tensors[key]
    elif change == "extra":
        tensors[f"{key}.more"] = torch.zeros(1)
    else:
        tensors[key] = torch.cat([tensors[key], tensors[key]])
    torch.save(saved, path)
    with pytest.raises(TensorFileError, match=f"{path.name} does not fit a .*: "):
        load(path)


def test_a_damaged_vocabulary_is_named(tmp_path):
    path = stand_ins.write_tokenizer(tmp_path / "tokenizer.json")
    path.write_text(path.read_text()[:-200])
    with pytest.raises(ValueError, match="tokenizer.json"):
        BertTokenizer(path)


def test_texts_are_cut_off_behind_their_last_token_s_end_mark(tmp_path):
    """As BERT's own tokenizer does: start, as many words as fit, end."""
    tokenizer = BertTokenizer(stand_ins.write_tokenizer(tmp_path / "tokenizer.json"))
    tokens, mask = tokenizer(["a red circle", "a " * 60])
    assert tokens[0, :6].tolist() == [2, 4, 5, 6, 3, 0] and mask[0].sum() == 5
    assert tokens[1].tolist() == [2, *[4] * 33, 3] and mask[1].sum() == 35
    assert tokenizer.count("a " * 60) == 62


@pytest.mark.parametrize("name", ["clip", "hps", "imagereward"])
def test_bfloat16_scores_are_close_and_float32(cache, checkpoints, clip_folder, tmp_path, name):
    from hypernoise.hypernoise_core.rewards.hps import Hps

    tokenizer = BertTokenizer(stand_ins.write_tokenizer(tmp_path / "tokenizer.json"))

    def load(dtype):
        if name == "clip":
            into_folder(tmp_path / "mine", clip_folder)
            return load_rewards({"clip": 1.0}, tmp_path / "mine", dtype)
        path = checkpoints[name][1]
        if name == "hps":
            return Hps(load_open_clip(stand_ins.OPEN_CLIP, path, dtype))
        return load_image_reward(stand_ins.VISION, stand_ins.TEXT, path, tokenizer, dtype)

    full, half = (load(dtype).score(IMAGES, PROMPTS) for dtype in (torch.float32, torch.bfloat16))
    assert half.dtype == torch.float32 and not torch.equal(full, half)
    torch.testing.assert_close(full, half, rtol=0.1, atol=0.05)


def test_a_download_goes_into_the_folder_and_is_checked(cache, clip_folder, tmp_path, monkeypatch):
    """The hub itself is replaced."""
    asked = []

    def hf_hub_download(repository, name, local_dir, revision):
        asked.append((repository, name, revision))
        path = Path(local_dir) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((clip_folder / name).read_bytes())
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    store = WeightStore(tmp_path / "mine")
    for file in ClipScore.files:
        store.download(file)
    assert asked == [(file.repository, file.name, file.revision) for file in ClipScore.files]
    load_rewards({"clip": 1.0}, tmp_path / "mine").score(IMAGES, PROMPTS)
    bad = WeightFile(WEIGHTS.repository, WEIGHTS.name, sha256="0" * 64)
    with pytest.raises(TensorFileError, match="published is 0000"):
        store.download(bad)


_COMMIT = "0123456789" * 4


class _Mirror(BaseHTTPRequestHandler):
    """Answers as the hub does where `fault` lets it, and cuts the file off where it is "cut"."""

    fault = ""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        fault, content = self.fault, b"0123456789" * 20
        if fault == "silence":
            self.connection.close()
        elif fault == "garbage":
            self.wfile.write(b"\x00\xff this is no HTTP\r\n\r\n")
        elif fault.isdigit():
            self.send_error(int(fault))
        elif fault in ("circle", "file"):
            self.send_response(302)
            self.send_header("Location", self.path if fault == "circle" else "file:///etc/passwd")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif fault == "html":
            self.answer(b"<html>log in first</html>", {})
        else:
            self.answer(content, {"X-Repo-Commit": _COMMIT, "ETag": '"abc"'}, cut=fault == "cut")

    def answer(self, content: bytes, headers: dict[str, str], cut: bool = False) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:50] if cut else content)
            if cut:
                self.connection.close()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def mirror(fault: str, monkeypatch) -> Iterator[str]:
    """The hub's client asks this server, which has that fault; without patience."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("", (_Mirror,), {"fault": fault}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()


FAULTS = ["silence", "garbage", "403", "404", "500", "circle", "file", "html", "cut"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_mirror_is_named_with_what_to_do(cache, tmp_path, monkeypatch, fault):
    file = WeightFile("owner/name", "model.safetensors")
    with mirror(fault, monkeypatch) as endpoint:
        for store in (WeightStore(), WeightStore(tmp_path / "mine")):
            with pytest.raises(OSError) as raised:
                store.download(file)
            text = str(raised.value)
            assert text.startswith(
                f"{file.name} of owner/name could not be downloaded from {endpoint}"
            )
            assert "HF_ENDPOINT" in text and "\n" not in text
            assert store.look_for(file) is None


def test_a_mirror_that_works_is_downloaded_from(cache, monkeypatch):
    with mirror("", monkeypatch):
        path = WeightStore().download(WeightFile("owner/name", "model.safetensors"))
    assert path.stat().st_size == 200
