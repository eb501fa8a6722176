"""Folders of rewards as strangers pack them: read from their own files alone, or refused."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from transformers.utils import import_utils

from hypernoise.hypernoise_core.errors import TensorFileError
from hypernoise.hypernoise_core.rewards import load_rewards
from hypernoise.hypernoise_core.rewards.clip_score import ClipScore
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


def change_part(folder: Path, name: str, **entries: object) -> None:
    config = json.loads((part(folder) / "config.json").read_text())
    change_config(folder, **{name: {**config[name], **entries}})


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


FOLLOWED: dict[str, object] = {
    "_attn_implementation": "stranger/attention",
    "attn_implementation": "stranger/attention:forward",
    "_attn_implementation_internal": "flash_attention_2",
    "_experts_implementation": "stranger/experts",
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "compression_config": {"quant_method": "compressed-tensors"},
    "fusion_config": {"patch_embeddings": {"kernel": "stranger/x"}},
    "kernel_config": {"kernel_mapping": {"RMSNorm": "stranger/x:RMSNorm"}},
    "distributed_config": {"tp_plan": "auto"},
    "base_model_tp_plan": {"layers": "colwise"},
    "per_layer_config": {"0": {"attn_implementation": "stranger/x"}},
    "adapter_config": {"base_model_name_or_path": "stranger/x"},
    "custom_pipelines": {"x": {"impl": "x.X"}},
    "backbone_config": {"backbone": "stranger/x"},
    "backbone": "stranger/x",
    "auto_map": {"AutoModel": "stranger/x--evil.Evil"},
    "attention": "stranger/x",
    "of_tomorrow": {"repository": "stranger/x"},
}
"""Entries that transformers acts on, or may come to act on, as one takes them for an attack."""
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "linked weights": (lambda f: link_out(f, WEIGHTS.inside(f)), "link out of"),
    "linked config": (lambda f: link_out(f, CONFIG.inside(f)), "link out of"),
    "linked folder": (lambda f: link_out(f, part(f)), "link out of"),
    "adapter": (adapter, "adapter_config.json"),
    "auto map": (lambda f: change_config(f, auto_map={"AutoModel": "evil.Evil"}), "auto_map"),
    "other weights": (
        lambda f: change_config(f, transformers_weights="../../x.safetensors"), "transformers_wei",
    ),
    **{
        f"{key} of {name}": (
            lambda f, key=key, name=name, value=value: (
                change_part(f, name, **{key: value}) if name else change_config(f, **{key: value})
            ),
            rf"config.json asks for .* {name + '.' if name else ''}{key},",
        )
        for name in ("", "text_config", "vision_config")
        for key, value in FOLLOWED.items()
    },
    "ten million layers": (
        lambda f: change_part(f, "text_config", num_hidden_layers=10_000_000),
        "text_config.num_hidden_layers to 1e",
    ),
    "a million layers": (
        lambda f: change_part(f, "vision_config", num_hidden_layers=1_000_000),
        "asks for a larger network than its .* tensors can fill",
    ),
    "a width of a million": (
        lambda f: change_part(f, "vision_config", intermediate_size=1 << 22, num_hidden_layers=90),
        "asks for a larger network than its .* tensors can fill",
    ),
    "code": (lambda f: (part(f) / "modeling_clip.py").write_text("1/0"), "contains code"),
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


OLD = {
    "_commit_hash": None, "_name_or_path": "/home/someone/clip/", "architectures": ["CLIPModel"],
    "torch_dtype": "float32", "transformers_version": "4.16.0.dev0", "return_dict": True,
    "bad_words_ids": None, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "length_penalty": 1.0,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "prefix": None, "problem_type": None,
    "pruned_heads": {}, "task_specific_params": None, "torchscript": False, "top_p": 1.0,
    "use_bfloat16": False, "tf_legacy_loss": False, "tokenizer_class": None,
    "suppress_tokens": None, "_attn_implementation_autoset": True, "cache_implementation": "hybrid",
}  # fmt: skip
"""Entries of configurations that people have published with their models."""


def test_configurations_of_old_versions_are_read(folder, tally):
    texts = json.loads((part(folder) / "config.json").read_text())["text_config"]
    change_config(folder, **OLD, text_config_dict=texts, vision_config_dict=None)
    change_part(folder, "text_config", **OLD, hidden_act="quick_gelu", model_type="clip_text_model")
    change_part(folder, "vision_config", **OLD, cross_attention_hidden_size=None)
    load_rewards({"clip": 1.0}, folder).score(IMAGES, PROMPTS)
    tally("hostile folders of rewards").count("worked")


STAND_IN = """
from unittest.mock import MagicMock
def get_kernel(repository, *others, **options):
    with open({marker!r}, "w") as file:
        file.write(repository)
    raise OSError("the hub cannot be reached")
def _unchanged(*names, **options):
    return lambda decorated: decorated
use_kernel_forward_from_hub = use_kernelized_func = use_kernel_func_from_hub = _unchanged
def __getattr__(name):
    return MagicMock()
"""
KERNELS = """
from hypernoise.hypernoise_core.rewards import load_rewards
try:
    load_rewards({{"clip": 1.0}}, {folder!r})
except ValueError as error:
    print(error)
"""


def test_the_package_that_runs_code_of_repositories_is_not_reached(folder, tmp_path):
    """transformers asks it for the attention that a configuration names, and it asks the hub."""
    package = tmp_path / "packages"
    (package / "kernels").mkdir(parents=True)
    marker = tmp_path / "reached"
    (package / "kernels" / "__init__.py").write_text(STAND_IN.format(marker=str(marker)))
    version = getattr(import_utils, "KERNELS_MIN_VERSION", "0.10")
    (package / f"kernels-{version}.dist-info").mkdir()
    (package / f"kernels-{version}.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: kernels\nVersion: {version}\n"
    )
    change_config(folder, _attn_implementation="stranger/attention")
    code = KERNELS.format(folder=str(folder))
    paths = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert not marker.exists(), run.stderr
    assert "config.json asks for custom code" in run.stdout, run.stderr


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
