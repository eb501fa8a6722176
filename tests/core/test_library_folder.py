"""What of a folder of diffusers or transformers is loaded, and what is refused before that."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from hypernoise.hypernoise_core.errors import LibraryFolderError
from hypernoise.hypernoise_core.library_folder import (
    building_from,
    check_pipeline,
    safetensors_variant,
)
from hypernoise.training.embedded_models import EMBEDDED
from hypernoise.training.pipelines import load_pipeline

GENERATOR = EMBEDDED["tiny-sprint"]


def folder_with(folder: Path, *names: str) -> Path:
    for name in (*names, "config.json"):
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("names", "variant"),
    [
        (["model.safetensors"], None),
        (["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"], None),
        (["model.fp16.safetensors"], "fp16"),
        (["diffusion_pytorch_model.non_ema.safetensors", "diffusion_pytorch_model.bin"], "non_ema"),
        (["model.safetensors.index.json", "model-00001-of-00002.safetensors"], None),
        (["model.safetensors.index.bf16.json", "model.bf16-00001-of-00002.safetensors"], "bf16"),
        (["model.safetensors.index.bf16.json", "model-00001-of-00002.bf16.safetensors"], "bf16"),
    ],
)
def test_the_weights_without_a_variant_come_first(tmp_path, names, variant):
    assert safetensors_variant(folder_with(tmp_path, *names)) == variant


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no weights"),
        (["model.bin"], r"no .safetensors file \(model.bin\)"),
        (["model.fp16.safetensors", "model.bf16.safetensors"], "several variants .*bf16, fp16"),
        (["model-00001-of-00002.safetensors"], "no weights under a name"),
        (["weights.safetensors"], r"no weights under a name .*\(weights.safetensors\)"),
    ],
)
def test_a_folder_without_weights_to_read_is_named(tmp_path, names, message):
    with pytest.raises(LibraryFolderError, match=message) as error:
        safetensors_variant(folder_with(tmp_path, *names))
    assert str(tmp_path) in str(error.value)


@pytest.fixture
def generator(tmp_path) -> Path:
    return Path(shutil.copytree(GENERATOR, tmp_path / "generator"))


def change(path: Path, **entries: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.mark.parametrize(
    "named",
    [
        ["transformers", "pipeline"],
        ["transformers", "AutoModel"],
        ["transformers", "Trainer"],
        ["transformers", "utils"],
        ["transformers", "NoSuchModel"],
        ["transformers", ["Gemma2Model"]],
        ["diffusers", "DiffusionPipeline"],
        ["diffusers", "SanaSprintPipeline"],
    ],
    ids=str,
)
def test_a_part_that_is_no_network_tokenizer_or_scheduler_is_refused(generator, named):
    change(generator / "model_index.json", text_encoder=named)
    with pytest.raises(LibraryFolderError, match="model_index.json asks for .* as text_encoder"):
        load_pipeline(str(generator))


@pytest.mark.parametrize(
    ("file", "entries", "key"),
    [
        ("text_encoder/config.json", {"_attn_implementation": "a/b"}, "_attn_implementation"),
        ("text_encoder/config.json", {"quantization_config": {"load_in_8bit": True}}, "quant"),
        ("text_encoder/config.json", {"rope_parameters": {"rope_type": "a/b"}}, "rope_param"),
        ("transformer/config.json", {"quantization_config": {"quant_method": "gguf"}}, "quantiz"),
        ("transformer/config.json", {"auto_map": "evil.Evil"}, "auto_map"),
        ("vae/config.json", {"num_layers": 10**9}, "num_layers to 1e"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**9}, "num_train_times"),
        ("tokenizer/tokenizer_config.json", {"tokenizer_file": "../../secret.json"}, "tokenizer_f"),
        ("tokenizer/tokenizer_config.json", {"vocab_file": "/etc/passwd"}, "vocab_file"),
        ("tokenizer/tokenizer_config.json", {"auto_map": {"AutoTokenizer": "e.E"}}, "auto_map"),
        ("tokenizer/tokenizer_config.json", {"fast_tokenizer_files": ["../t.json"]}, "fast_tok"),
    ],
)
def test_an_entry_that_leads_elsewhere_is_named(generator, file, entries, key):
    """Of each kind of part; the keys of transformers' networks are walked with the rewards."""
    change(generator / file, **entries)
    with pytest.raises(LibraryFolderError, match=f"{file} .*{key}"):
        load_pipeline(str(generator))


@pytest.mark.parametrize(
    "part", ["../a.safetensors", "/a.safetensors", "a\\b.safetensors", "a.bin"]
)
def test_an_index_names_safetensors_beside_it_alone(generator, part):
    index = {"metadata": {}, "weight_map": {"a": "model.safetensors", "b": part}}
    (generator / "vae" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        LibraryFolderError, match=r"index.json names .* as a shard; shards must be .saf"
    ):
        load_pipeline(str(generator))


def test_entries_of_published_folders_are_read(generator):
    change(
        generator / "text_encoder" / "config.json",
        _name_or_path="google/gemma-2-2b-it",
        cache_implementation="hybrid",
        hidden_act="gelu_pytorch_tanh",
        torch_dtype="bfloat16",
        rope_theta=10000.0,
        _attn_implementation_autoset=True,
    )
    change(generator / "transformer" / "config.json", _name_or_path="a/b", of_old="x", dropped=None)
    change(
        generator / "tokenizer" / "tokenizer_config.json",
        model_max_length=10**30,
        special_tokens_map_file="/home/someone/special_tokens_map.json",
        tokenizer_file=None,
        name_or_path="google/gemma-2-2b-it",
        chat_template="{{ messages }}",
    )
    load_pipeline(str(generator))


@pytest.mark.parametrize(
    ("part", "entries"),
    [
        ("text_encoder", {"num_hidden_layers": 1_000_000, "layer_types": None}),
        ("text_encoder", {"vocab_size": 8_000_000, "hidden_size": 4096}),
        ("transformer", {"num_layers": 1_000_000}),
    ],
)
def test_a_network_larger_than_its_weights_is_not_built(generator, part, entries):
    """It would take all memory before a weight is missed."""
    change(generator / part / "config.json", **entries)
    with pytest.raises(
        LibraryFolderError, match="asks for a larger network than its .* tensors can fill"
    ):
        load_pipeline(str(generator))


def test_other_networks_are_built_as_before_behind_a_refusal():
    with pytest.raises(LibraryFolderError), building_from(GENERATOR / "vae"):
        torch.nn.Linear(100_000, 100_000, device="meta")
    torch.nn.Linear(100_000, 100_000, device="meta")
    check_pipeline(GENERATOR)
