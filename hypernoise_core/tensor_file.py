"""Tensors from files, without running any code in them, and into networks, none left over.

Files come from strangers: no size that a file states is believed before it is compared with the
file's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .errors import TensorFileError
from .pickled_file import MAX_TENSORS, read_pickled
from .strict_json import parse_object

MAX_HEADER = 8 << 20
"""Bytes of a .safetensors header; that of an adapter for FLUX has 0.2 MB."""

_LIBRARY_MAX_HEADER = 100_000_000  # the library takes no longer ones
_METADATA = "__metadata__"
_PART = 1 << 20  # of 8-bit floats, converted at a time
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def is_safetensors(path: Path) -> bool:
    """Whether the file's name says that it is a .safetensors file, in small letters or large."""
    return path.suffix.lower() == ".safetensors"


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file on the CPU, by name, and the entries of a .safetensors header.

    The tensors are copies: nobody who writes into the file later changes them. 8-bit floats, with
    which torch cannot compute, come as float16, which holds each of their values. Anything that
    does not end in .safetensors is read as torch's own format, weights only. There, a dict below
    the key `state_dict` counts for the whole.

    Raises:
        TensorFileError: names the file and what is wrong with it.
    """
    if not is_safetensors(path):
        return read_pickled(path), {}
    with open_safetensors(path) as file:
        entries = file.metadata() or {}
    try:
        with path.open("rb") as raw:
            header = _read_header(raw, path.stat().st_size)
            _check_dtypes(path, header)
            start = raw.tell()
            tensors = {name: _read(raw, start, entry) for name, entry in header.items()}
    except TensorFileError:
        raise
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    return tensors, entries


class TensorRows:
    """Rows of the tensors (N, ...) in a .safetensors file, each read when it is asked for.

    Nothing is mapped into memory, where a file that is cut short meanwhile would end the process,
    and nothing is kept open.

    Raises:
        TensorFileError: names the file and what is wrong with it.
        IndexError: a tensor has no rows, as it is a single number.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_safetensors(path) as file:
            self.entries: dict[str, str] = file.metadata() or {}
            """Of the header."""
        try:
            with path.open("rb") as raw:
                self._header = _read_header(raw, path.stat().st_size, _LIBRARY_MAX_HEADER)
                self._start = raw.tell()
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error
        _check_dtypes(path, self._header)
        self.counts = {name: entry["shape"][0] for name, entry in self._header.items()}
        """How many rows each tensor has, by its name."""

    def row(self, number: int) -> dict[str, Tensor]:
        """That row of each tensor, (1, ...) on the CPU, by name.

        Raises:
            TensorFileError: the file is gone, or has become shorter.
        """
        try:
            with self.path.open("rb", buffering=0) as raw:
                return {name: self._read(raw, name, number) for name in self._header}
        except (OSError, ValueError) as error:
            raise _damaged(self.path, error) from error

    def _read(self, raw: BinaryIO, name: str, number: int) -> Tensor:
        entry = self._header[name]
        begin, end = entry["data_offsets"]
        size = (end - begin) // self.counts[name]
        raw.seek(self._start + begin + number * size)
        return _read_values(raw, size, _DTYPES[entry["dtype"]]).view(1, *entry["shape"][1:])


def open_safetensors(path: Path) -> Any:
    """The open file, for `with`; its header is checked against the file's size.

    Raises:
        TensorFileError: names the file and what is wrong with it.
    """
    try:
        with path.open("rb") as raw:
            _header_length(raw, path.stat().st_size)
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _header_length(raw: BinaryIO, file_size: int) -> int:
    length = int.from_bytes(raw.read(8), "little")
    if length > file_size - 8:
        raise ValueError(f"its header claims {length} bytes, but the file has {file_size}")
    return length


def _read_header(
    raw: BinaryIO, file_size: int, largest: int = MAX_HEADER
) -> dict[str, dict[str, Any]]:
    """Dtype, shape and place of each tensor in a file that the library has found to be whole.

    The library lets the second of two equal keys win and takes headers of any length up to 100 MB.

    Raises:
        ValueError: says what is wrong.
    """
    length = _header_length(raw, file_size)
    if length > largest:
        raise ValueError(f"its header has {length} bytes, more than {largest}")
    header = parse_object(raw.read(length))
    header.pop(_METADATA, None)
    if len(header) > MAX_TENSORS:
        raise ValueError(f"it contains {len(header)} tensors, more than {MAX_TENSORS}")
    return header


def _check_dtypes(path: Path, header: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises TensorFileError for valid dtypes of the format that are not supported."""
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise TensorFileError(
                f"{path} contains {name[:200]!r} in the unsupported dtype {entry['dtype']}: "
                f"convert it to float16, bfloat16 or float32"
            )


def _read(raw: BinaryIO, start: int, entry: Mapping[str, Any]) -> Tensor:
    """One tensor; `start` is where those of the file begin."""
    begin, end = entry["data_offsets"]
    raw.seek(start + begin)
    dtype = _DTYPES[entry["dtype"]]
    if not (dtype.is_floating_point and dtype.itemsize == 1):
        return _read_values(raw, end - begin, dtype).view(entry["shape"])
    values = torch.empty(end - begin, dtype=torch.float16)
    for part in values.split(_PART):  # so that memory stays below twice the file
        part.copy_(_read_values(raw, len(part), dtype))
    return values.view(entry["shape"])


def _read_values(raw: BinaryIO, size: int, dtype: torch.dtype) -> Tensor:
    """The next `size` bytes, as a vector."""
    content = bytearray(size)
    if raw.readinto(content) != size:
        raise ValueError("it was truncated while it was being read")
    if not content:  # torch takes no empty buffer
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(content, dtype=dtype)


def _damaged(path: Path, error: Exception) -> TensorFileError:
    return TensorFileError(f"{path} is damaged, truncated or not a .safetensors file: {error}")


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
