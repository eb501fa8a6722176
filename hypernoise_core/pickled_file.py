"""Tensors in torch's own format, .bin and .pt, whose pickle is inspected before it is loaded.

torch's weights-only loading runs no code, but it calls constructors with any size that the file
states (a bytearray of 100 GB), accepts tensors whose shapes exceed their data, and decompresses zip
bombs. Such files are refused here, and so are those that torch and Python's zipfile could read as
different archives.
"""

from __future__ import annotations

import io
import mmap
import pickle
import pickletools
import re
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from .errors import TensorFileError

_GLOBALS = re.compile(
    r"collections OrderedDict|torch \w+Storage|torch\.storage UntypedStorage"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
)
"""The globals in the pickle of a dict of tensors, as `pickletools` prints them."""
_NEWER_DTYPES = "torch._utils _rebuild_tensor_v3"  # 8-bit floats, unsigned integers and others
MAX_TENSORS = 20_000
"""Maximum number of tensors in a file; an adapter for FLUX has 1,000."""
_CALLS_PER_TENSOR = 3  # for the tensor, its dict of hooks, and the parameter around it
_OLD_PICKLES = 5  # before torch 1.6: magic number, version, machine, dict, storage keys

_ZIP = b"PK\x03\x04"  # the first bytes, by which torch distinguishes its two formats
_LOCAL_HEADER = 30  # bytes before the name
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")


class _DtypeError(ValueError):
    """The file contains a tensor of a dtype that is not supported."""


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of the file on the CPU, by name.

    If the file contains a dict at the key `state_dict`, that dict is read.

    Raises:
        TensorFileError: names the file and what is wrong with it.
    """
    try:
        _inspect(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except _DtypeError as error:
        raise TensorFileError(f"{path} {error}") from error
    except Exception as error:  # damaged files raise anything: torch trusts the order of opcodes
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TensorFileError(
            f"{path} is damaged, or contains more than tensors, which is refused because such a "
            f"file can run code: {reason}"
        ) from error
    if isinstance(tensors, dict) and isinstance(tensors.get("state_dict"), dict):
        tensors = tensors["state_dict"]
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    ):
        raise TensorFileError(f"{path} does not contain tensors by name")
    # Twice the size, as two names may share one tensor.
    if sum(t.numel() * t.element_size() for t in tensors.values()) > 2 * path.stat().st_size:
        raise TensorFileError(f"{path} is damaged: its tensors are larger than the file")
    return tensors


def _inspect(path: Path) -> None:
    """Raises ValueError if the file asks for anything other than the tensors in it."""
    with path.open("rb") as file:
        if file.read(len(_ZIP)) == _ZIP:
            _check_archive(file)
        else:
            _check_old(file)


def _check_old(file: BinaryIO) -> None:
    try:
        file.seek(0)
        tarfile.open(fileobj=file, mode="r:").close()
    except tarfile.TarError:
        pass
    else:
        raise ValueError("it is a tar archive, a format that torch no longer writes")
    # Not the file itself, whose `read` allocates as many bytes as the pickle asks for.
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for _ in range(_OLD_PICKLES):
            _check_globals(content)


def _check_archive(file: BinaryIO) -> None:
    """The members must follow each other from the first byte to the directory at the end of the
    file, without compression."""
    start, count = _directory(file)
    with zipfile.ZipFile(file) as archive:
        members = sorted(archive.infolist(), key=lambda member: member.header_offset)
        if archive.start_dir != start or len(members) != count or not members:
            raise ValueError("it contains two archives, or another number of entries than it says")
        # torch ignores the case of names, and Python cuts names at a null byte.
        if len({member.orig_filename.lower() for member in members}) < count:
            raise ValueError("two of its entries have the same name")
        ends = [member.header_offset for member in members[1:]] + [start]
        if members[0].header_offset != 0:
            raise ValueError("there is data before its first entry")
        for member, end in zip(members, ends, strict=True):
            name = member.orig_filename
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"its entry {name!r:.60} is compressed")
            if not name.isprintable():
                raise ValueError(f"one of its entries is named {name!r:.60}")
            if member.header_offset + _LOCAL_HEADER + len(name) + member.file_size > end:
                raise ValueError(f"its entry {name!r:.60} overlaps the next one")
        for member in members:
            if member.filename.lower().endswith(".pkl"):
                _check_globals(io.BytesIO(archive.read(member)))


def _directory(file: BinaryIO) -> tuple[int, int]:
    """The offset of the archive's directory, and the number of its members.

    torch always writes the ZIP64 record. It must directly follow the directory and agree with the
    plain record wherever the numbers fit into that.

    Raises:
        ValueError: the records contradict each other, or are not at the end of the file.
    """
    wrong = ValueError("it does not end with one directory of its entries, as torch's files do")
    size = file.seek(0, io.SEEK_END)
    length = min(size, _END_64.size + _LOCATOR_64.size + _END.size)
    file.seek(size - length)
    tail = file.read(length)
    signature, *disks, here, count, extent, start, comment = _END.unpack(tail[-_END.size :])
    if signature != b"PK\x05\x06" or any(disks) or here != count or comment:
        raise wrong
    end = size - _END.size
    locator = tail[-_END.size - _LOCATOR_64.size : -_END.size]
    if locator.startswith(b"PK\x06\x07"):
        end = size - length
        record = _END_64.unpack(tail[: _END_64.size])
        large = record[6:]  # members on this disk and in total, size and offset of the directory
        plain = (here, count, extent, start)
        full = (0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
        agree = all(a in (b, most) for a, b, most in zip(plain, large, full, strict=True))
        if record[0] != b"PK\x06\x06" or _LOCATOR_64.unpack(locator)[2] != end or not agree:
            raise wrong
        _, count, extent, start = large
    if start + extent != end:
        raise wrong
    return start, count


def _check_globals(file: BinaryIO) -> None:
    calls = 0
    for opcode, argument, _ in pickletools.genops(file):
        calls += opcode.name == "REDUCE"
        if calls > _CALLS_PER_TENSOR * MAX_TENSORS:
            raise ValueError(f"it contains more than {MAX_TENSORS} tensors")
        if opcode.name == "GLOBAL" and _GLOBALS.fullmatch(argument):
            continue
        if opcode.name == "GLOBAL" and argument == _NEWER_DTYPES:
            raise _DtypeError(
                "contains numbers of a dtype that is not read from torch's own format, such as "
                "8-bit floats: save it as .safetensors, or convert it to float16, bfloat16 or "
                "float32"
            )
        if opcode.name in ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
            raise pickle.UnpicklingError(f"it refers to {argument or opcode.name}")
