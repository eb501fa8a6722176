"""Tensors from files, without running any code in them, and into networks, none left over."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn


class TensorFileError(ValueError):
    """A file that is damaged, cut short or holds more than tensors."""


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file on the CPU, by name, and the entries of a .safetensors header.

    Anything that does not end in .safetensors is read as torch's own format, weights only. There, a
    dict below the key `state_dict` counts for the whole.

    Raises:
        TensorFileError: names the file and what is wrong with it.
    """
    if path.suffix != ".safetensors":
        return _read_pickled(path), {}
    with open_safetensors(path) as file:
        try:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error


def open_safetensors(path: Path) -> Any:
    """The open file, for `with`; its header is checked against the file's size.

    Raises:
        TensorFileError: names the file and what is wrong with it.
    """
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def to_safetensors(tensors: Mapping[str, Tensor], entries: Mapping[str, str]) -> bytes:
    """A .safetensors file. The same tensors and header entries always give the same bytes, where
    the library's own order of the entries changes from call to call.

    Args:
        tensors: on the CPU, contiguous.
        entries: of the header, in any order.
    """
    content = save(dict(tensors), dict(entries))
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(entries.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at multiples of 8 bytes
    return b"".join([len(text).to_bytes(8, "little"), text, memoryview(content)[end:]])


def _damaged(path: Path, error: Exception) -> TensorFileError:
    return TensorFileError(f"{path} is damaged, cut short or no .safetensors file: {error}")


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, zipfile.BadZipFile) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TensorFileError(
            f"{path} is damaged, or holds more than tensors, which is refused because such a file "
            f"can run code: {reason}"
        ) from error
    if isinstance(tensors, dict) and isinstance(tensors.get("state_dict"), dict):
        tensors = tensors["state_dict"]
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise TensorFileError(f"{path} does not hold tensors by name")
    return tensors


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copies tensors by name into parameters and buffers that are part of the state.

    Raises:
        TensorFileError: names what is missing, left over or of another shape in the file at `path`.
    """
    own = module.state_dict()
    problems = [f"{name} is missing" for name in own if name not in tensors]
    problems += [f"{name} is not part of the network" for name in tensors if name not in own]
    problems += [
        f"{name} is {tuple(tensors[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if problems:
        raise TensorFileError(
            f"{path} does not fit a {type(module).__name__}: {'; '.join(problems[:4])}"
            + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")
        )
    module.load_state_dict(tensors)
