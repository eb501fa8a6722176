"""Adapters from strangers: one error with the file, the key and what to do; no code, no memory."""

import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hypernoise.hypernoise_core.adapter import load_adapter, save_adapter
from hypernoise.hypernoise_core.errors import AdapterError
from hypernoise.hypernoise_core.peft_config import CONFIG_NAME
from hypernoise.hypernoise_core.tensor_file import read_tensors
from hypernoise.tests import warm
from hypernoise.tests.trust.test_fuzz import new_adapter

KEY = "transformer_blocks.0.attn1.to_q.lora_A.weight"
NAN, INFINITE = float("nan"), float("inf")


def split(content: bytes) -> tuple[dict, bytes]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: dict | str, data: bytes, stated: int | None = None) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return (len(text) if stated is None else stated).to_bytes(8, "little") + text + data


@pytest.fixture
def good(tmp_path) -> bytes:
    """The bytes of an adapter."""
    return save_adapter(new_adapter(), tmp_path / "good.safetensors").read_bytes()


def with_header(change: Callable[[dict], object]) -> Callable[[bytes], bytes]:
    def make(content: bytes) -> bytes:
        header, data = split(content)
        change(header)
        return joined(header, data)

    return make


def with_tensor(change: Callable[[torch.Tensor], torch.Tensor], key: str = KEY):
    """The file with one tensor as `change` leaves it."""
    from safetensors.torch import load, save

    def make(content: bytes) -> bytes:
        tensors = load(content)
        tensors[key] = change(tensors[key]).contiguous()
        return save(tensors, split(content)[0]["__metadata__"])

    return make


def with_metadata(**entries: str) -> Callable[[bytes], bytes]:
    return with_header(lambda header: header["__metadata__"].update(entries))


def twice(content: bytes) -> bytes:
    header, data = split(content)
    return joined(json.dumps(header)[:-1] + f', "{KEY}": {json.dumps(header[KEY])}}}', data)


def overlapping(header: dict) -> None:
    header[KEY]["data_offsets"] = header["proj_out.lora_A.weight"]["data_offsets"]


def filled(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[:3] = value
        return tensor

    return change


EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
DAMAGED = "is damaged, truncated or not a .safetensors file"
HOSTILE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda content: b"", DAMAGED),
    "no bytes behind the length": (lambda content: content[:8], DAMAGED),
    "cut in the header": (lambda content: content[:50], DAMAGED),
    "cut in the data": (lambda content: content[:-1], DAMAGED),
    "bytes too many": (lambda content: content + b"\0" * 8, DAMAGED),
    "a header of 10 GB": (lambda content: joined(*split(content), stated=10 << 30), "10737418240"),
    "a header of 2^64 bytes": (lambda content: joined(*split(content), stated=2**64 - 1), DAMAGED),
    "a header one byte short": (
        lambda content: joined(*split(content), stated=len(json.dumps(split(content)[0])) - 1),
        DAMAGED,
    ),
    "a header that is a list": (lambda content: joined("[1]", b""), DAMAGED),
    "a header nested 100,000 deep": (
        lambda content: joined("[" * 100_000 + "]" * 100_000, b""),
        DAMAGED,
    ),
    "a header of megabytes": (
        with_header(lambda h: h["__metadata__"].update(x="y" * (9 << 20))),
        "its header has .* more than",
    ),
    "a key twice": (twice, DAMAGED),
    "two keys on the same bytes": (with_header(overlapping), DAMAGED),
    "a huge shape": (with_header(lambda h: h[KEY].update(shape=[2**40, 2**20])), DAMAGED),
    "a negative shape": (with_header(lambda h: h[KEY].update(shape=[-2, -6])), DAMAGED),
    "a shape that is no list": (with_header(lambda h: h[KEY].update(shape="big")), DAMAGED),
    "offsets outside the file": (
        with_header(lambda h: h[KEY].update(data_offsets=[0, 2**62])),
        DAMAGED,
    ),
    "an unknown dtype": (with_header(lambda h: h[KEY].update(dtype="F7")), DAMAGED),
    "a dtype of another size": (with_header(lambda h: h[KEY].update(dtype="F64")), DAMAGED),
    "whole numbers as weights": (
        with_tensor(lambda t: t.int()),
        f"{KEY} has the dtype torch.int32",
    ),
    "weights of 8 bits that are NaN": (
        with_tensor(lambda t: filled(NAN)(t).to(torch.float8_e4m3fn)),
        r"NaN or infinite.*to_q \(3 of 12\)",
    ),
    "a dtype that is not read": (
        with_header(lambda h: h[KEY].update(dtype="U32")),
        f"contains '{KEY}' in the unsupported dtype U32",
    ),
    "NaN weights": (with_tensor(filled(NAN)), r"NaN or infinite.*to_q \(3 of 12\).*earlier"),
    "infinite weights": (with_tensor(filled(-INFINITE)), r"to_q \(3 of 12\)"),
    "rank 0": (with_tensor(lambda t: t[:0]), "of a rank of 1 or more: .*to_q"),
    "factors of two ranks": (with_tensor(lambda t: t[:1]), r"to_q \(A \(1, 6\), B \(6, 2\)\)"),
    "a vector": (with_tensor(lambda t: t.flatten()), "not weights of a plain LoRA.*to_q"),
    "five dimensions": (with_tensor(lambda t: t.view(1, 1, 1, 2, 6)), "plain LoRA.*to_q"),
    "alpha 0": (with_metadata(alpha="0"), "alpha must be a positive number, got 0.0"),
    "alpha NaN": (with_metadata(alpha="nan"), "alpha must be a positive number, got nan"),
    "alpha infinite": (with_metadata(alpha="inf"), "alpha must be a positive number"),
    "alpha of a layer 0": (
        with_metadata(alpha_pattern='{"proj_out": 0}'),
        "alpha_pattern.*positive number",
    ),
    "alpha of a layer true": (with_metadata(alpha_pattern='{"proj_out": true}'), "alpha_pattern"),
    "rank in words": (with_metadata(rank="four"), "metadata .* damaged.*four"),
    "rank -1": (with_metadata(rank="-1"), "rank must be at least 1"),
    "rewards that are a list": (with_metadata(rewards="[1]"), "not a JSON object"),
    "a reward's weight in words": (with_metadata(rewards='{"redness": "x"}'), "weights of rewards"),
    "a format of tomorrow": (with_metadata(format_version="99"), "update hypernoise"),
    "metadata cut out": (
        with_header(lambda h: h["__metadata__"].pop("last_layer")),
        "metadata .* damaged.*last_layer",
    ),
    "a last layer that is not there": (with_metadata(last_layer="gone"), "do not belong|'gone'"),
    "another family": (with_metadata(family="flux"), "looks like sana_sprint"),
    "a name with escapes": (
        with_header(lambda h: h.update({"\x1b[2J\x07.weight": h.pop(KEY)})),
        r"'\\x1b\[2J",
    ),
    "a name of a megabyte": (
        with_header(lambda h: h.update({"unet." * 200_000: h.pop(KEY)})),
        "not weights of a plain LoRA",
    ),
    "a setting whose name has 300,000 prefixes": (
        with_header(
            lambda h: h.update(
                __metadata__={"lora_adapter_metadata": json.dumps({"unet." * 300_000: 1})}
            )
        ),
        "lora_adapter_metadata in the header .* must be",
    ),
    "100,000 tensors": (
        lambda content: joined(
            {
                f"x{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
                for i in range(100_000)
            },
            b"",
        ),
        "it contains 100000 tensors",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_safetensors_file_is_refused(name, good, tmp_path, tally):
    make, message = HOSTILE[name]
    path = tmp_path / "stranger.safetensors"
    path.write_bytes(make(good))
    with pytest.raises(AdapterError, match=message) as caught:
        load_adapter(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 6000
    tally("hostile .safetensors").count("refused")


CONFIGS = {
    "not UTF-8": (b"\xff\xfe{", "cannot be read"),
    "no JSON": (b"r: 8", "cannot be read"),
    "a list": (b"[]", "not a JSON object"),
    "nested 100,000 deep": (b"[" * 100_000, "nested too deeply"),
    "a key twice": (b'{"r": 2, "r": 4, "lora_alpha": 2}', "duplicate key 'r'"),
    "5 MB": (b" " * (5 << 20) + b"{}", "5242882 bytes"),
    "rank 0": ({"r": 0}, "r must be a whole number of at least 1, got 0"),
    "rank in words": ({"r": "two"}, "r must be a whole number of at least 1, got 'two'"),
    "rank 2.5": ({"r": 2.5}, "got 2.5"),
    "rank true": ({"r": True}, "got True"),
    "no rank": ({"r": None}, "got None"),
    "alpha 0": ({"lora_alpha": 0}, "lora_alpha: alpha must be a positive number, got 0"),
    "alpha NaN": ({"lora_alpha": NAN}, "got nan"),
    "alpha infinite": ({"lora_alpha": INFINITE}, "got inf"),
    "alpha of 400 digits": ({"lora_alpha": 10**400}, "lora_alpha: alpha must be"),
    "alpha a list": ({"lora_alpha": [4]}, r"got \[4\]"),
    "patterns that are a list": ({"rank_pattern": ["a"]}, "rank_pattern must be a dict"),
    "a pattern's rank 0": ({"rank_pattern": {"proj_out": 0}}, r"rank_pattern\['proj_out'\] must"),
    "a pattern's alpha in words": ({"alpha_pattern": {"x": "y"}}, r"alpha_pattern\['x'\]"),
    "a pattern that is none": ({"rank_pattern": {"(": 2}}, "opens a group that is never closed"),
    "a pattern that closes too much": ({"rank_pattern": {"a)|(b": 2}}, "was never opened"),
    "a pattern that takes years": (
        {"rank_pattern": {"(.+)+x": 2}},
        r"'\(\.\+\)\+x'.*'\+x'.*supported",
    ),
    "a pattern with flags": (
        {"alpha_pattern": {"(?x:(a|a) *b)": 2}},
        r"alpha_pattern.*unsupported.*'\?x:",
    ),
    "a pattern that looks ahead": ({"rank_pattern": {"(?=(a+))": 2}}, "is not supported"),
    "a pattern that refers back": ({"rank_pattern": {r"(a+)\1": 2}}, "is not supported"),
    "a pattern with a count": ({"rank_pattern": {"a{1,9}": 2}}, "is not supported"),
    "a pattern that holds on": ({"rank_pattern": {"a++": 2}}, "is not supported"),
    "a pattern with no such set": ({"rank_pattern": {"[z-a]": 2}}, "not a set of characters"),
    "a pattern nested 10,000 deep": ({"rank_pattern": {"(" * 10_000: 2}}, "nests more than"),
    "a pattern of 200,000 repeats": ({"rank_pattern": {".*" * 200_000: 2}}, "too complex"),
    "a million ranks": (
        {"rank_pattern": {f"{i}": 2 for i in range(100_000)}},
        "rank_pattern has too many patterns",
    ),
    "a million patterns": ({"rank_pattern": {f"{i}.*": 2 for i in range(100_000)}}, "too many"),
    "rslora in words": ({"use_rslora": "no"}, "use_rslora must be a bool"),
    "a model that is a number": ({"base_model_name_or_path": 7}, "base_model_name_or_path must"),
    "another method": ({"peft_type": "LOHA"}, "peft_type='LOHA'"),
    "an unhashable method": ({"peft_type": {"a": 1}}, "peft_type="),
    "DoRA": ({"use_dora": True}, "use_dora=True"),
    "an initialisation that is a dict": ({"init_lora_weights": {"x": 1}}, "init_lora_weights="),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_hostile_configuration_is_refused(name, tmp_path, tally):
    content, message = CONFIGS[name]
    folder = save_adapter(new_adapter(), tmp_path / "stranger")
    config = folder / CONFIG_NAME
    torch.save(
        {f"{n}.lora_{f}.weight": t.detach() for n, b in new_adapter().branches.items()
         for f, t in (("A", b.down), ("B", b.up))},
        folder / "adapter_model.bin",
    )  # fmt: skip
    (folder / "adapter_model.safetensors").unlink()
    if isinstance(content, dict):
        content = json.dumps(json.loads(config.read_bytes()) | content).encode()
    config.write_bytes(content)
    with pytest.raises(AdapterError, match=message) as caught:
        load_adapter(folder)
    assert str(config) in str(caught.value)
    assert len(str(caught.value)) < 2000
    tally("hostile adapter_config.json").count("refused")


def test_a_pattern_whose_search_never_ended_is_refused(tmp_path):
    """Its choice is repeated, of which only the flag for spaces takes note."""
    layer = "time_embed." + "a" * 300
    names = [f"base_model.model.{layer}.lora_{factor}.weight" for factor in "AB"]
    save_file({n: torch.zeros(2, 2) for n in names}, tmp_path / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 2,
        "alpha_pattern": {r"(?x:time_embed\.(a|a) *b)": 3},
    }
    (tmp_path / CONFIG_NAME).write_text(json.dumps(config))
    with pytest.raises(AdapterError, match="alpha_pattern has an unsupported pattern"):
        load_adapter(tmp_path, family="sana_sprint")


class Evil:
    """Unpickled it makes a folder: the sign that code has run."""

    def __init__(self, sign: Path) -> None:
        self.sign = str(sign)

    def __reduce__(self):
        return os.mkdir, (self.sign,)


class Call:
    """Unpickled it calls something that torch allows, with what it was given."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def zipped(content: object, compression: int = zipfile.ZIP_STORED) -> Callable[[Path], None]:
    """A file like torch's whose pickle is of this object."""

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))
            archive.writestr("archive/version", "3\n")
            archive.writestr("archive/byteorder", "little")

    return write


def compressed(path: Path) -> None:
    """200 MB of zeros in 200 KB."""
    torch.save({KEY: torch.zeros(50_000_000)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def old_with_a_zip(path: Path, size: int = 10**8) -> None:
    """torch reads the pickle at the beginning, Python's zipfile the good archive behind it."""
    good = path.with_name("good.bin")
    torch.save({KEY: torch.zeros(6, 2)}, good)
    torch.save({KEY: Call(bytearray, size)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes() + good.read_bytes())


def two_directories(path: Path, size: int = 10**8) -> None:
    """The record that torch follows leads to one archive, the one of zipfile to another."""
    zipped({KEY: Call(bytearray, size)})(path)
    evil = path.read_bytes()
    torch.save({KEY: torch.zeros(6, 2)}, path)
    good = path.read_bytes()
    evil_start = int.from_bytes(evil[-6:-2], "little")
    good_start = int.from_bytes(good[-6:-2], "little")
    parts, directory = evil[:evil_start], evil[evil_start:-22]
    count = int.from_bytes(evil[-12:-10], "little")
    record = struct.pack(
        "<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), evil_start
    )
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, evil_start + len(directory), 1)
    middle = parts + directory + record
    path.write_bytes(middle + good[:good_start] + good[good_start:-98] + locator + good[-22:])


def changed_bin(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        torch.save({KEY: torch.zeros(6, 2)}, path)
        path.write_bytes(change(path.read_bytes()))

    return write


def same_name_twice(path: Path) -> None:
    """torch takes either for data.pkl."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("data.PKL", {KEY: Call(bytearray, 10**8)}), ("data.pkl", {})):
            archive.writestr(f"archive/{name}", pickle.dumps(content, protocol=2))


def capital_pickle(path: Path) -> None:
    """torch finds data.pkl by this name too."""
    with zipfile.ZipFile(path, "w") as archive:
        content = pickle.dumps({KEY: Call(bytearray, 10**8)}, protocol=2)
        archive.writestr("archive/DATA.PKL", content)


def bytes_before_the_first_part(path: Path) -> None:
    """With a directory that knows of them."""
    with path.open("wb") as file:
        file.write(b"PK\3\4" + bytes(96))
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))


def in_a_tar(path: Path) -> None:
    """torch opens those of before 0.1.10; the name looks like the pickles of one of later."""
    with tarfile.open(path, "w") as archive:
        for name in ("N.N.N.N.N.", "storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name))


def overlapping_parts(path: Path) -> None:
    """All of them lie in the last one."""
    torch.save({KEY: torch.zeros(6, 2)}, path)
    content = bytearray(path.read_bytes())
    start = int.from_bytes(content[-6:-2], "little")
    first = start + content[start:].index(b"PK\1\2")
    second = content.index(b"PK\1\2", first + 4)
    content[first + 20 : first + 28] = struct.pack("<2L", 900, 900)  # size, twice
    assert second > first
    path.write_bytes(content)


def expanded(path: Path) -> None:
    """Four bytes that are said to be a matrix of 4 TB."""
    torch.save({KEY: torch.zeros(1, 1).expand(10**6, 10**6)}, path)


def shared(path: Path) -> None:
    """One tensor under 1,000 names."""
    tensor = torch.zeros(1000, 100)
    torch.save({f"layer{i}.lora_A.weight": tensor for i in range(1000)}, path)


def old_format_without_data(path: Path) -> None:
    torch.save({KEY: torch.zeros(6, 2)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-60])


PICKLED: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "damaged"),
    "a zip without tensors": (lambda path: zipped([1])(path), "does not contain tensors by name"),
    "a text": (lambda path: path.write_text("no tensors"), "damaged"),
    "numbers as names": (lambda path: torch.save({1: torch.zeros(2)}, path), "tensors by name"),
    "a list of tensors": (lambda path: torch.save([torch.zeros(2)], path), "tensors by name"),
    "a module": (lambda path: torch.save(torch.nn.Linear(1, 1), path), "can run code"),
    "a bytearray of 100 GB": (zipped({KEY: Call(bytearray, 10**11)}), "refers to .*bytearray"),
    "a tensor made on the spot": (zipped({KEY: Call(torch.FloatTensor, 10**10)}), "FloatTensor"),
    "compressed a thousandfold": (compressed, "is compressed"),
    "an old file with a zip behind it": (old_with_a_zip, "refers to .*bytearray"),
    "two directories": (
        two_directories,
        "does not end with one directory of its entries, as torch's files do",
    ),
    "bytes behind the archive": (
        changed_bin(lambda b: b + b"x"),
        "does not end with one directory",
    ),
    "a comment of the archive": (
        changed_bin(lambda b: b[:-2] + b"\4\0" + b"text"),
        "does not end with one directory",
    ),
    "bytes before the archive": (
        changed_bin(lambda b: b[:4] + b"x" * 99 + b),
        "does not end with one directory",
    ),
    "bytes that the directory knows of": (
        bytes_before_the_first_part,
        "data before its first entry",
    ),
    "another number of parts": (
        changed_bin(lambda b: b[:-14] + b"\1\0\1\0" + b[-10:]),
        "does not end with one directory",
    ),
    "100,000 tensors": (
        zipped({str(i): Call(OrderedDict) for i in range(100_000)}),
        "more than 20000 tensors",
    ),
    "two pickles of a name": (same_name_twice, "same name"),
    "a pickle in capitals": (capital_pickle, "refers to .*bytearray"),
    "a tar archive": (in_a_tar, "is a tar archive"),
    "parts in parts": (overlapping_parts, "overlaps the next one"),
    "a shape beyond its data": (expanded, "larger than the file"),
    "one tensor a thousand times": (shared, "larger than the file"),
    "an old file without its data": (old_format_without_data, "damaged"),
    "a sparse tensor": (
        lambda path: torch.save({KEY: torch.eye(3).to_sparse()}, path),
        "refers to",
    ),
    "a tensor without data": (
        lambda path: torch.save({KEY: torch.zeros(2, 2, device="meta")}, path),
        "refers to",
    ),
}


@pytest.mark.parametrize("name", PICKLED)
def test_a_hostile_bin_file_is_refused(name, tmp_path, tally):
    write, message = PICKLED[name]
    path = tmp_path / "stranger.bin"
    write(path)
    with pytest.raises(AdapterError, match=message) as caught:
        load_adapter(path)
    assert str(path) in str(caught.value)
    tally("hostile .bin").count("refused")


@pytest.mark.parametrize("zip_format", [True, False])
def test_files_of_the_installed_torch_are_read(zip_format, tmp_path):
    tensors = {
        f"transformer_blocks.{i}.attn1.to_q.lora_{factor}.weight": torch.randn(3, 3)
        for i in range(40)
        for factor in "AB"
    }
    torch.save(tensors, tmp_path / "a.bin", _use_new_zipfile_serialization=zip_format)
    read = read_tensors(tmp_path / "a.bin")[0]
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("form", ["zip", "old", "bare"])
def test_no_code_runs_while_a_file_is_read(form, protocol, tmp_path, tally):
    path, sign = tmp_path / "stranger.bin", tmp_path / "code has run"
    content = {KEY: torch.zeros(2, 6), "evil": Evil(sign)}
    if form == "bare":
        path.write_bytes(pickle.dumps({"evil": Evil(sign)}, protocol=protocol))
    else:
        zip_format = form == "zip"
        torch.save(
            content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zip_format
        )
    with pytest.raises(AdapterError, match="can run code"):
        load_adapter(path)
    assert not sign.exists()
    with pytest.raises(FileExistsError):  # what the file would have done
        sign.mkdir()
        pickle.loads(pickle.dumps(Evil(sign)))  # noqa: S301
    tally(".bin that would run code").count("refused")


MEMORY = """
import json, resource, sys
from hypernoise.hypernoise_core.adapter import load_adapter
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
before = peak()
try:
    adapter = load_adapter(sys.argv[1])
    outcome = "read"
except ValueError as error:
    outcome = type(error).__name__
print(json.dumps({"outcome": outcome, "bytes": peak() - before}))
"""
SLACK = 40 << 20
"""What Python and torch take for themselves at the first file."""


def memory_of(path: Path) -> dict:
    run = warm.run(MEMORY, path)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def large(rank: int = 4000) -> torch.Tensor:
    return torch.randn(rank, 10_000)


def write_8_bits(path: Path) -> None:
    """An adapter whose file is one large tensor, nearly."""
    adapter = new_adapter(rank=6000)
    adapter.branches["proj_out"].down.data = torch.ones(6000, 20_000, dtype=torch.bfloat16)
    save_adapter(adapter, path)
    tensors, header = load_file(path), split(path.read_bytes())[0]["__metadata__"]
    tensors = {n: t.clamp(-9, 9).to(torch.float8_e5m2) for n, t in tensors.items()}
    save_file(tensors, path, header)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells a process's peak")
@pytest.mark.parametrize(
    "name",
    ["safetensors", "8 bits", "bin", "expanded", "compressed", "shared", "bytearray", "huge shape"]
    + ["NaN", "old with a zip", "two directories"],
)
def test_memory_stays_below_twice_the_file(name, good, tmp_path, tally):
    safe = ("safetensors", "8 bits", "NaN", "huge shape")
    path = tmp_path / ("a.safetensors" if name in safe else "a.bin")
    if name in ("safetensors", "NaN"):
        adapter = new_adapter(rank=2000)
        branch = adapter.branches["proj_out"]
        branch.down.data = torch.randn(2000, 20_000)
        if name == "NaN":
            branch.down.data[0, 0] = NAN
        save_adapter(adapter, path)
    elif name == "8 bits":
        write_8_bits(path)
    elif name == "bin":
        torch.save({"proj_out.lora_A.weight": large(), "proj_out.lora_B.weight": large().T}, path)
    elif name == "huge shape":
        path.write_bytes(with_header(lambda h: h[KEY].update(shape=[2**36, 1]))(good))
    elif name in ("old with a zip", "two directories"):
        write = old_with_a_zip if name == "old with a zip" else two_directories
        write(path, 3 * 10**9)
    elif name == "bytearray":
        zipped({KEY: Call(bytearray, 3 * 10**9)})(path)
    else:
        {"expanded": expanded, "compressed": compressed, "shared": shared}[name](path)
    found = memory_of(path)
    assert found["bytes"] < 2 * path.stat().st_size + SLACK
    assert (found["outcome"] == "read") == (name in ("safetensors", "8 bits"))
    tally("memory while reading").count(found["outcome"])


def test_a_file_that_is_overwritten_changes_nothing_that_was_read(good, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(good)
    adapter = load_adapter(path)
    with path.open("r+b") as file:  # in place, as cp does
        file.truncate(0)
        file.write(b"\0" * len(good))
    expected = new_adapter()
    for name, branch in adapter.branches.items():
        assert torch.equal(branch.down, expected.branches[name].down)
