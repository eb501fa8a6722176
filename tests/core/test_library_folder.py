"""Which weights of a folder of diffusers or transformers are loaded."""

from pathlib import Path

import pytest

from hypernoise.hypernoise_core.library_folder import LibraryFolderError, safetensors_variant


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
        ([], "no weights at all"),
        (["model.bin"], r"no .safetensors file \(model.bin\)"),
        (["model.fp16.safetensors", "model.bf16.safetensors"], "several variants .*bf16, fp16"),
        (["model-00001-of-00002.safetensors"], "no weights by the names"),
        (["weights.safetensors"], r"no weights by the names .*\(weights.safetensors\)"),
    ],
)
def test_a_folder_without_weights_to_read_is_named(tmp_path, names, message):
    with pytest.raises(LibraryFolderError, match=message) as error:
        safetensors_variant(folder_with(tmp_path, *names))
    assert str(tmp_path) in str(error.value)
