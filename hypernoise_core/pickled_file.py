"""Tensors in torch's own format, .bin and .pt, whose pickle is looked through before it is loaded.

torch's weights-only loading runs no code, but it calls constructors with whatever sizes the file
states (a bytearray of 100 GB), takes tensors of shapes beyond their data, and unpacks what a zip
has compressed a thousandfold. Such files are refused here.
"""

from __future__ import annotations

import io
import mmap
import pickle
import pickletools
import re
import zipfile
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

_GLOBALS = re.compile(
    r"collections OrderedDict|torch \w+Storage|torch\.storage UntypedStorage"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
)
"""What the pickle of a dict of tensors refers to, as `pickletools` writes it."""
_NEWER_DTYPES = "torch._utils _rebuild_tensor_v3"  # of 8-bit floats, unsigned numbers and others
_OLD_PICKLES = 5  # before torch 1.6: a mark, a version, the machine, the dict, the storages' keys


class TensorFileError(ValueError):
    """A file that is damaged or cut short, or holds something else than tensors that are read."""


class _DtypeError(ValueError):
    """The file holds a tensor of a dtype that is not read."""


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of the file on the CPU, by name.

    A dict below the key `state_dict` counts for the whole.

    Raises:
        TensorFileError: names the file and what is wrong with it.
    """
    try:
        _look_through(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except _DtypeError as error:
        raise TensorFileError(f"{path} {error}") from error
    except Exception as error:  # damaged files raise anything: torch trusts the order of opcodes
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TensorFileError(
            f"{path} is damaged, or holds more than tensors, which is refused because such a file "
            f"can run code: {reason}"
        ) from error
    if isinstance(tensors, dict) and isinstance(tensors.get("state_dict"), dict):
        tensors = tensors["state_dict"]
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    ):
        raise TensorFileError(f"{path} does not hold tensors by name")
    # Twice: two names may share one tensor.
    if sum(t.numel() * t.element_size() for t in tensors.values()) > 2 * path.stat().st_size:
        raise TensorFileError(f"{path} is damaged: its tensors are larger than the file")
    return tensors


def _look_through(path: Path) -> None:
    """Raises ValueError where the file asks for more than tensors it holds."""
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            # Not the file itself, which makes room for as many bytes as it is asked for.
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                for _ in range(_OLD_PICKLES):
                    _check_globals(content)
            return
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{member.filename} in it is compressed")
            for member in archive.infolist():
                if member.filename.endswith(".pkl"):
                    _check_globals(io.BytesIO(archive.read(member)))


def _check_globals(file: BinaryIO) -> None:
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL" and _GLOBALS.fullmatch(argument):
            continue
        if opcode.name == "GLOBAL" and argument == _NEWER_DTYPES:
            raise _DtypeError(
                "holds numbers of a dtype that is not read from torch's own format, such as 8-bit "
                "floats: write it as .safetensors, or convert it to float16, bfloat16 or float32"
            )
        if opcode.name in ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
            raise pickle.UnpicklingError(f"it refers to {argument or opcode.name}")
