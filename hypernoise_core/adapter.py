"""Adapters on disk: the one place that opens them and decides which kind they are.

An adapter is a noise hypernetwork, in any form that hypernetwork_file.py reads, or a LoRA on the
generator itself that hypernoise trained. The header of the file tells them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from .errors import AdapterError, TensorFileError
from .generator_lora import GeneratorLora, build_generator_lora
from .hypernetwork import NoiseHypernetwork
from .hypernetwork_file import build_hypernetwork, save_adapter
from .metadata import check_alpha, is_generator_lora, is_hypernoise_header
from .module_names import name_some
from .peft_config import WEIGHTS_NAME
from .tensor_file import read_tensors

__all__ = ["find_weights", "load_adapter", "load_generator_lora", "open_adapter", "save_adapter"]

WEIGHT_NAMES = (
    WEIGHTS_NAME,  # peft's
    "adapter_model.bin",
    "pytorch_lora_weights.safetensors",  # diffusers'
    "pytorch_lora_weights.bin",
)
"""File names looked for in a folder; the first one that exists is read."""
SUFFIXES = (".safetensors", ".bin")
SEARCHED = 3
"""How many levels of subfolders are searched for the error message when a folder has none of
`WEIGHT_NAMES`."""


def open_adapter(
    path: str | Path, *, alpha: float | None = None
) -> NoiseHypernetwork | GeneratorLora:
    """Read an adapter of either kind; the file is read once.

    Args:
        path: a .safetensors or .bin file, or a folder as peft or diffusers saves it.
        alpha: LoRA alpha of every layer, for a noise hypernetwork that does not state it.

    Returns:
        The adapter on the CPU, in the dtype of the file, or float16 where the file has 8-bit
        floats; its parameters take gradients.

    Raises:
        AdapterError: the file is missing or damaged, does not state its scale, or states it and
            `alpha` is given as well.
    """
    return _open(Path(path), None, None, alpha)


def load_adapter(
    path: str | Path, *, family: str | None = None, alpha: float | None = None
) -> NoiseHypernetwork:
    """Read a noise hypernetwork; see `open_adapter`.

    Args:
        family: name of the generator's family; None: the one that the file states, or else the one
            that its layer names belong to.

    Raises:
        AdapterError: as from `open_adapter`, or the file is a LoRA on the generator.
        ValueError: there is no such family.
    """
    return _open(Path(path), NoiseHypernetwork, family, alpha)


def load_generator_lora(path: str | Path) -> GeneratorLora:
    """Read a LoRA on the generator that `save_generator_lora` wrote; see `open_adapter`.

    Returns:
        The LoRA with alpha = rank; it computes what the saved one did.

    Raises:
        AdapterError: as from `open_adapter`, or the file is of another kind.
    """
    return _open(Path(path), GeneratorLora, None, None)


def _open(
    path: Path, wanted: type | None, family: str | None, alpha: float | None
) -> NoiseHypernetwork | GeneratorLora:
    weights = find_weights(path)
    if alpha is not None:
        check_alpha(alpha)
    try:
        # Nodes run in inference mode, and tensors made there could never be trained later.
        with torch.inference_mode(False):
            tensors, header = read_tensors(weights)
            kind = GeneratorLora if is_generator_lora(header) else NoiseHypernetwork
            if wanted not in (None, kind):
                raise AdapterError(_wrong_kind(wanted, header))
            if kind is NoiseHypernetwork:
                return build_hypernetwork(weights, tensors, header, family, alpha)
            if alpha is not None:
                raise AdapterError(
                    "the weights of a LoRA on the generator include its scale, but alpha was "
                    "given: leave alpha out"
                )
            return build_generator_lora(tensors, header)
    except TensorFileError as error:
        raise AdapterError(str(error)) from error
    except AdapterError as error:
        if str(path) in str(error):
            raise
        raise AdapterError(f"{path}: {error}") from error


def _wrong_kind(wanted: type, header: Mapping[str, str]) -> str:
    if wanted is NoiseHypernetwork:
        return (
            "this is a LoRA on the generator itself, not a noise hypernetwork: load it like any "
            "other LoRA, with pipeline.load_lora_weights or ComfyUI's Load LoRA"
        )
    found = "a noise hypernetwork" if is_hypernoise_header(header) else "another kind of file"
    return f"this is {found}, not a LoRA on the generator that hypernoise trained"


def find_weights(path: Path) -> Path:
    """The file with the weights: `path` itself, or the one in that folder.

    Raises:
        AdapterError: there is none; names what was looked for.
    """
    if path.is_dir():
        found = [path / name for name in WEIGHT_NAMES if (path / name).is_file()]
        if not found:
            others = name_some(_files_below(path))
            hint = f", but {others}: give the file itself" if others else ""
            raise AdapterError(
                f"the folder {path} contains none of {', '.join(WEIGHT_NAMES)}{hint}"
            )
        return found[0]
    if not path.is_file():
        raise AdapterError(f"there is no adapter at {path}")
    if path.suffix.lower() not in SUFFIXES:
        raise AdapterError(f"{path} is neither a folder nor a .safetensors or .bin file")
    return path


def _files_below(folder: Path) -> list[str]:
    """The nearest files of weights in subfolders, as paths relative to the folder."""
    for depth in range(1, SEARCHED + 1):
        found = [
            str(path.relative_to(folder))
            for path in folder.glob("/".join("*" * depth))
            if path.suffix.lower() in SUFFIXES and path.is_file()
        ]
        if found:
            return sorted(found)
    return []
