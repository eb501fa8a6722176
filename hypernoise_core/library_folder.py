"""Checks of a diffusers or transformers folder, before one of these libraries opens it.

Both libraries follow the JSON in the folder: to code next to it, to weights elsewhere, to packages
and repositories with their own code. A folder may come from an untrusted source, so only settings
that the libraries' own classes take to build a network are accepted, and no network is built that
is larger than the weights in the folder.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from .errors import LibraryFolderError
from .strict_json import parse_object
from .tensor_file import open_safetensors
from .text_file import read_text

LARGEST_JSON = 64 << 20
"""Size limit in bytes; the indexes of the largest models have a few megabytes."""
LARGEST_NUMBER = 1 << 23
"""Limit for integers in a network's configuration; vocabularies and text lengths stay below a
million. The libraries allocate lists of such lengths."""
PARTS_PER_TENSOR = 10
"""Limit for modules per tensor in the files; the libraries' networks have at most 3."""
MODULES_WITHOUT_WEIGHTS = 100_000
"""Limit for modules in a folder without weights, whose network is only built for its shapes; the
largest networks of the libraries have a few thousand."""
LIBRARIES = ("diffusers", "transformers")
_KINDS = {
    "diffusers": ("ModelMixin", "SchedulerMixin"),
    "transformers": (
        "PreTrainedModel",
        "PreTrainedTokenizerBase",
        "FeatureExtractionMixin",
        "ImageProcessingMixin",
        "ProcessorMixin",
    ),
}
"""Base classes of pipeline components in each library."""
_ABOUT = frozenset(
    "_class_name _diffusers_version _name_or_path architectures cache_implementation dtype "
    "finetuning_task id2label label2id model_type problem_type task_specific_params "
    "tokenizer_class torch_dtype transformers_version".split()
)
"""Descriptive entries of configurations, in words; they have no effect."""
_OF_OTHER_VERSIONS = frozenset(
    "activation_function hidden_act hidden_activation layer_types position_embedding_type "
    "rope_parameters rope_scaling".split()
)
"""Entries in words that describe a network in files of older and newer transformers versions."""
_WORD = re.compile(r"[\w.+-]*")
_CONFIGS = ("config.json", "scheduler_config.json")
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_)?model"
    r"(?:(?:\.(?P<one>\w+))?\.safetensors|\.safetensors\.index(?:\.(?P<shards>\w+))?\.json)"
)
"""File names that the libraries look for: weights in one file, or the index of their shards."""


def check_pipeline(folder: Path, parts: Sequence[str] | None = None) -> None:
    """Check that these parts of a pipeline use the libraries' own classes and pass `check_part`.

    Args:
        parts: names of the parts; None: all parts of the pipeline.

    Raises:
        LibraryFolderError: names the file and the offending entry.
        ImportError: a library is missing.
    """
    _check_code(folder)
    path = folder / "model_index.json"
    index = read_json(path)
    if not isinstance(index.get("_class_name"), str):
        raise LibraryFolderError(
            f"{path} asks for a custom pipeline class, {index.get('_class_name')!r:.60}; only "
            f"those of diffusers are loaded"
        )
    if parts is None:
        named = (name for name, value in index.items() if isinstance(value, list))
        parts = [name for name in named if index[name] != [None, None]]
    for name in parts:
        library = index.get(name)
        if not isinstance(library, list) or len(library) != 2 or library[0] not in LIBRARIES:
            raise LibraryFolderError(
                f"{path} asks for {library!r:.80} as {name}; only classes of "
                f"{' and '.join(LIBRARIES)} are loaded"
            )
        if not (folder / name).is_dir():
            raise LibraryFolderError(f"{folder} has no folder {name}: download the complete model")
        check_part(folder / name, _library_class(path, name, *library))


def _library_class(path: Path, part: str, library: str, name: object) -> type:
    """The class of a part that a model_index.json names."""
    module = importlib.import_module(library)
    found = getattr(module, name, None) if isinstance(name, str) else None
    kinds = tuple(kind for kind in (getattr(module, k, None) for k in _KINDS[library]) if kind)
    if not (isinstance(found, type) and issubclass(found, kinds)):
        raise LibraryFolderError(
            f"{path} asks for {library}.{name!s:.60} as {part}, which is not a network, "
            f"tokenizer or scheduler of the installed {library}"
        )
    return found


def check_part(folder: Path, loaded: type) -> None:
    """Check that a part, such as a network or a tokenizer, is read only from the tensors and JSON
    in its own folder, without running code.

    Args:
        loaded: the library class that the part is loaded as.

    Raises:
        LibraryFolderError: names the file and the offending entry.
    """
    _check_code(folder)
    if (adapter := folder / "adapter_config.json").exists():
        raise LibraryFolderError(
            f"{adapter} makes transformers load another model; remove it from the folder"
        )
    for path in sorted(folder.glob("*.json")):
        if path.name in ("tokenizer.json", "vocab.json"):  # large, and only read by tokenizers
            continue
        content = read_json(path)
        if path.name in _CONFIGS:
            _check_config(path, content, getattr(loaded, "config_class", None) or loaded)
        else:
            _check_settings(path, content)
        if ".index." in path.name:
            _check_index(path, content)


def _check_config(path: Path, content: Mapping[str, Any], taker: Any, within: str = "") -> None:
    """Check that each entry of a configuration is a parameter of the class that takes it, or is
    harmless.

    transformers keeps all other entries as attributes and acts on many of them; each version adds
    more. Numbers are harmless under any name, and files of older versions have many of them.
    diffusers ignores what its class does not take, except for objects.
    """
    known = _parameters(taker) | _OF_OTHER_VERSIONS
    parts = getattr(taker, "sub_configs", None) or {}
    drops_texts = not within and hasattr(taker, "config_name")
    for key, value in content.items():
        shown = f"{within}{key}"
        inner = parts.get(key.removesuffix("_dict"))
        if isinstance(value, dict) and inner is not None:
            _check_config(path, value, inner, f"{shown}.")
            continue
        if largest := _too_large(value):
            raise LibraryFolderError(
                f"{path} sets {shown:.100} to {largest:.3g}, which is too large for a network"
            )
        if _is_inert(value) or (drops_texts and isinstance(value, str) and key != "auto_map"):
            continue
        if key not in _ABOUT and (key not in known or not _are_words(value)):
            raise LibraryFolderError(
                f"{path} asks for custom code, files or settings with {shown:.100}, which is "
                f"not followed; remove that, or download the model from its authors"
            )


def _check_settings(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse code, and paths in place of the folder's own files, in tokenizers and processors."""
    for key, value in content.items():
        leads = key.endswith("_file") and key != "special_tokens_map_file"  # this one is not read
        outside = leads and isinstance(value, str) and not _WORD.fullmatch(value)
        if (
            key == "auto_map"
            or (key == "fast_tokenizer_files" and not _are_words(value))
            or outside
        ):
            raise LibraryFolderError(
                f"{path} asks for custom code or files with {key}, which is not followed; remove "
                f"that, or download the model from its authors"
            )


def _parameters(taker: Any) -> set[str]:
    """The parameter names of a configuration class, or of a class that diffusers configures."""
    names: set[str] = set()
    for base in inspect.getmro(taker):
        if "__init__" in vars(base):
            names |= inspect.signature(base.__init__).parameters.keys()
    return {name for name in names if "implementation" not in name and name != "kwargs"}


def _is_inert(value: object) -> bool:
    """Whether it consists only of numbers, booleans and null."""
    if isinstance(value, list):
        return all(map(_is_inert, value))
    return value is None or isinstance(value, (int, float)) or value in ("", {})


def _are_words(value: object) -> bool:
    """Whether all strings in it are plain words, which cannot name a path or a repository."""
    if isinstance(value, dict):
        return all(_are_words(key) and _are_words(inner) for key, inner in value.items())
    if isinstance(value, list):
        return all(map(_are_words, value))
    return not isinstance(value, str) or _WORD.fullmatch(value) is not None


def _too_large(value: object) -> int | None:
    """The first integer in it that is above `LARGEST_NUMBER`."""
    if isinstance(value, (list, dict)):
        inner = value.values() if isinstance(value, dict) else value
        return next(filter(None, map(_too_large, inner)), None)
    return value if isinstance(value, int) and abs(value) > LARGEST_NUMBER else None


@contextmanager
def building_from(folder: Path) -> Iterator[None]:
    """While the block builds networks for the weights in a folder and its subfolders, limits their
    modules and parameters to what the weights can fill. Without weights, only the number of modules
    is limited, to more than any network has.

    A tiny configuration can ask for ten million layers, which exhaust the memory before the first
    of them is compared with a weight.

    Raises:
        LibraryFolderError: the network would be larger.
        TensorFileError: a weights file is damaged.
    """
    files = [path for path in folder.rglob("*.safetensors") if path.is_file()]
    tensors = 0
    for path in files:
        with open_safetensors(path) as file:
            tensors += len(list(file.keys()))
    most_modules = 1000 + PARTS_PER_TENSOR * tensors
    # At least one byte each; some versions of the libraries register a parameter several times.
    most_elements = LARGEST_NUMBER + 4 * sum(path.stat().st_size for path in files)
    if not files:
        most_modules, most_elements = MODULES_WITHOUT_WEIGHTS, math.inf
    thread = threading.get_ident()
    modules = elements = 0

    def count_module(parent: nn.Module, name: str, module: nn.Module | None) -> None:
        nonlocal modules
        if threading.get_ident() == thread:
            modules += 1
            refuse(modules > most_modules)

    def count_parameter(parent: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal elements
        if threading.get_ident() == thread and parameter is not None:
            elements += parameter.numel()
            refuse(elements > most_elements)

    def refuse(too_large: bool) -> None:
        if too_large:
            raise LibraryFolderError(
                f"the configuration in {folder} asks for a larger network than "
                + (f"its {tensors} tensors can fill" if files else "any that exists")
                + "; download the model from its authors"
            )

    hooks = (
        register_module_module_registration_hook(count_module),
        register_module_parameter_registration_hook(count_parameter),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def safetensors_variant(folder: Path) -> str | None:
    """Which .safetensors weights of a network's folder to load; other formats can hide code.

    Returns:
        The `variant` for `from_pretrained`: None if the folder has weights without one, otherwise
        the only variant, such as "fp16" for model.fp16.safetensors.

    Raises:
        LibraryFolderError: there is no .safetensors file, none with a name that the libraries
            read, or there are several variants.
    """
    files = sorted(path.name for path in folder.glob("*") if path.is_file())
    weights = [name for name in files if name.endswith(".safetensors")]
    if not weights:
        found = [name for name in files if not name.endswith(".json")]
        raise LibraryFolderError(
            f"{folder} contains no .safetensors file ({', '.join(found[:4]) or 'no weights'}); "
            f"other formats can run code and are not loaded: download the model's .safetensors "
            f"files"
        )
    variants = {
        found["one"] or found["shards"] for found in map(_WEIGHTS.fullmatch, files) if found
    }
    if None in variants:
        return None
    if len(variants) == 1:
        return variants.pop()
    if variants:
        raise LibraryFolderError(
            f"{folder} contains several variants of the weights ({', '.join(sorted(variants))}) "
            f"and no default; keep the files of one variant"
        )
    raise LibraryFolderError(
        f"{folder} contains no weights under a name that diffusers and transformers read "
        f"({', '.join(weights[:4])}): diffusion_pytorch_model.safetensors, model.safetensors or an "
        f"index of shards; download the complete model"
    )


def _check_code(folder: Path) -> None:
    """diffusers runs some files by name, such as None.py and tokenizer/transformers.py."""
    if code := sorted(path.name for path in folder.glob("*.py")):
        raise LibraryFolderError(
            f"{folder} contains code ({code[0]:.60}), which is not run; remove it, or download the "
            f"model from its authors"
        )


def _check_index(path: Path, content: Mapping[str, Any]) -> None:
    """Check that all shards are files in the same folder."""
    weight_map = content.get("weight_map")
    names = set(map(str, weight_map.values())) if isinstance(weight_map, dict) else {"nothing"}
    for name in sorted(names):
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise LibraryFolderError(
                f"{path} names {name!r:.100} as a shard; shards must be .safetensors files in the "
                f"same folder"
            )


def read_json(path: Path, largest: int = LARGEST_JSON) -> dict[str, Any]:
    """The object in a JSON file of at most `largest` bytes.

    Raises:
        LibraryFolderError: names the file and what is wrong with it.
    """
    try:
        if not path.is_file():
            raise ValueError("no such file")
        if path.stat().st_size > largest:
            raise ValueError(f"larger than {largest >> 20} MB")
        return parse_object(read_text(path))
    except (ValueError, OSError) as error:
        raise LibraryFolderError(f"{path} cannot be read: {error}") from error
