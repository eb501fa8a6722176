"""Folders of rewards as strangers pack them: read from their own files alone, or refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch

from hypernoise.hypernoise_core.rewards import load_rewards
from hypernoise.hypernoise_core.rewards.clip_score import ClipScore
from hypernoise.hypernoise_core.tensor_file import TensorFileError
from hypernoise.tests.rewards import stand_ins

CONFIG, WEIGHTS = ClipScore.files
IMAGES, PROMPTS = torch.rand(1, 3, 40, 40), ["a red circle"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """A whole CLIPScore in a folder of the user's, an empty cache and no hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    torch.manual_seed(0)
    stand_ins.write_clip(CONFIG.inside(tmp_path / "rewards").parent)
    return tmp_path / "rewards"


def part(folder: Path) -> Path:
    return CONFIG.inside(folder).parent


def change_config(folder: Path, **entries: object) -> None:
    path = part(folder) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def link_out(folder: Path, path: Path) -> None:
    target = folder.parent / "outside" / path.name
    target.parent.mkdir(exist_ok=True)
    path.rename(target)
    path.symlink_to(target, target.is_dir())


def pickled(folder: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (folder.parent / "marker",))

    WEIGHTS.inside(folder).unlink()
    torch.save({"a": Evil()}, part(folder) / "pytorch_model.bin")


def adapter(folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere"
    shutil.copytree(part(folder), elsewhere)
    config = {"base_model_name_or_path": str(elsewhere), "peft_type": "LORA"}
    (part(folder) / "adapter_config.json").write_text(json.dumps(config))


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "linked weights": (lambda f: link_out(f, WEIGHTS.inside(f)), "link out of"),
    "linked config": (lambda f: link_out(f, CONFIG.inside(f)), "link out of"),
    "linked folder": (lambda f: link_out(f, part(f)), "link out of"),
    "adapter": (adapter, "adapter_config.json"),
    "auto map": (lambda f: change_config(f, auto_map={"AutoModel": "evil.Evil"}), "auto_map"),
    "other weights": (
        lambda f: change_config(f, transformers_weights="../../x.safetensors"), "transformers_wei",
    ),
    "code": (lambda f: (part(f) / "modeling_clip.py").write_text("1/0"), "holds code"),
    "deep config": (lambda f: (part(f) / "config.json").write_text("[" * 100_000), "config.json"),
    "list for a config": (lambda f: (part(f) / "config.json").write_text("[]"), "config.json"),
    "binary config": (lambda f: (part(f) / "config.json").write_bytes(b"\xff"), "config.json"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_folder_that_leads_elsewhere_or_asks_for_code_is_refused(folder, tally, kind):
    change, reason = BAD[kind]
    change(folder)
    with pytest.raises(TensorFileError, match=reason):
        load_rewards({"clip": 1.0}, folder)
    tally("hostile folders of rewards").count("refused")


def test_pickled_weights_are_not_loaded(folder, tally):
    pickled(folder)
    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        load_rewards({"clip": 1.0}, folder)
    assert not (folder.parent / "marker").exists()
    tally("hostile folders of rewards").count("refused")


def test_a_linked_root_and_links_inside_of_it_are_fine(folder, tally):
    WEIGHTS.inside(folder).rename(folder / "weights")
    WEIGHTS.inside(folder).symlink_to(folder / "weights")
    (folder.parent / "linked").symlink_to(folder, True)
    load_rewards({"clip": 1.0}, folder.parent / "linked").score(IMAGES, PROMPTS)
    tally("hostile folders of rewards").count("worked")
