"""Folders in the layout of diffusers and transformers, before one of these libraries opens them.

Both follow what the folder's JSON says: to code beside it, to weights elsewhere, to files that are
unpickled. A folder that came from a stranger is held against this list first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .strict_json import parse_object
from .text_file import read_text

LARGEST_JSON = 64 << 20
"""In bytes; the indexes of the largest models have some megabytes."""
ASKS_FOR_MORE = ("auto_map", "custom_pipelines", "transformers_weights", "_custom_pipeline")
"""Keys by which a configuration names code or weights beside the usual files."""
LIBRARIES = ("diffusers", "transformers")
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_)?model"
    r"(?:(?:\.(?P<one>\w+))?\.safetensors|\.safetensors\.index(?:\.(?P<shards>\w+))?\.json)"
)
"""What the libraries look for: weights in one file, or the index of their parts."""


class LibraryFolderError(ValueError):
    """A folder that would run code, or read files outside of itself."""


def check_pipeline(folder: Path, parts: Sequence[str] | None = None) -> None:
    """Makes sure that these parts of a pipeline are the libraries' own and hold what `check_part`
    asks for.

    Args:
        parts: None: all that the pipeline names.

    Raises:
        LibraryFolderError: names the file, and what it asks for.
    """
    _check_code(folder)
    path = folder / "model_index.json"
    index = read_json(path)
    if not isinstance(index.get("_class_name"), str):
        raise LibraryFolderError(
            f"{path} asks for a pipeline class of its own, {index.get('_class_name')!r:.60}; only "
            f"diffusers' are loaded"
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
            raise LibraryFolderError(f"{folder} has no folder {name}: get the whole model")
        check_part(folder / name)


def check_part(folder: Path) -> None:
    """Makes sure that one part, such as a network or a tokenizer, is read from its own folder's
    tensors and JSON alone, without running code.

    Raises:
        LibraryFolderError: names the file, and what it asks for.
    """
    _check_code(folder)
    if (adapter := folder / "adapter_config.json").exists():
        raise LibraryFolderError(
            f"{adapter} makes transformers load another model; take it out of the folder"
        )
    for path in sorted(folder.glob("*.json")):
        if path.name in ("tokenizer.json", "vocab.json"):  # large, and read by tokenizers alone
            continue
        content = read_json(path)
        if asked := [key for key in ASKS_FOR_MORE if key in content]:
            raise LibraryFolderError(
                f"{path} asks for code or files of its own ({', '.join(asked)}), which is not run; "
                f"take that out, or get the model from its authors"
            )
        if ".index." in path.name:
            _check_index(path, content)


def safetensors_variant(folder: Path) -> str | None:
    """Which weights of a network's folder to load, of those that no code can hide in.

    Returns:
        The `variant` for `from_pretrained`: None where the folder has weights without one, else
        the one that it has, such as "fp16" where the file is model.fp16.safetensors.

    Raises:
        LibraryFolderError: there is no .safetensors file, none under a name that the libraries
            read, or several variants.
    """
    files = sorted(path.name for path in folder.glob("*") if path.is_file())
    weights = [name for name in files if name.endswith(".safetensors")]
    if not weights:
        found = [name for name in files if not name.endswith(".json")]
        raise LibraryFolderError(
            f"{folder} holds no .safetensors file ({', '.join(found[:4]) or 'no weights at all'}); "
            f"other kinds can run code and are not loaded: get the model's .safetensors files"
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
            f"{folder} holds several variants of the weights ({', '.join(sorted(variants))}) and "
            f"none without; keep the files of one"
        )
    raise LibraryFolderError(
        f"{folder} holds no weights by the names that diffusers and transformers read "
        f"({', '.join(weights[:4])}): those are diffusion_pytorch_model.safetensors or "
        f"model.safetensors, or an index of parts; get the whole folder of the model"
    )


def _check_code(folder: Path) -> None:
    """diffusers runs some files for their names, such as None.py and tokenizer/transformers.py."""
    if code := sorted(path.name for path in folder.glob("*.py")):
        raise LibraryFolderError(
            f"{folder} holds code ({code[0]:.60}), which is not run; take it out, or get the model "
            f"from its authors"
        )


def _check_index(path: Path, content: Mapping[str, Any]) -> None:
    """Shards are files of the same folder."""
    weight_map = content.get("weight_map")
    names = set(map(str, weight_map.values())) if isinstance(weight_map, dict) else {"nothing"}
    for name in sorted(names):
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise LibraryFolderError(
                f"{path} names {name!r:.100} as a part; parts are .safetensors files beside it"
            )


def read_json(path: Path, largest: int = LARGEST_JSON) -> dict[str, Any]:
    """The object in a JSON file of at most so many bytes.

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
