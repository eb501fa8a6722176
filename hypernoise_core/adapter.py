"""Noise hypernetworks on disk: read every known form, write ours.

Ours is one .safetensors with peft's key names and the metadata in its header, or a peft folder
(adapter_config.json and adapter_model.safetensors) whose weights carry the same header. Read as
well: folders of peft and of diffusers with .safetensors or .bin, and single files of others.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .atomic_file import write_atomically
from .errors import AdapterError, TensorFileError
from .families import FAMILIES, Family, family_of_adapter, get_family, looks_like
from .hypernetwork import NoiseHypernetwork
from .lora_branch import LoraBranch
from .metadata import AdapterMetadata, check_alpha, is_generator_lora, is_hypernoise_header
from .module_names import LayerWeights, name_some, parse_weights, plain_name, whose_names
from .peft_config import CONFIG_NAME, PeftConfig, config_for
from .strict_json import parse_object
from .tensor_file import is_safetensors, open_safetensors, read_tensors, to_safetensors

__all__ = ["AdapterMetadata", "load_adapter", "read_metadata", "save_adapter"]

WEIGHT_NAMES = (
    "adapter_model.safetensors",  # peft's
    "adapter_model.bin",
    "pytorch_lora_weights.safetensors",  # diffusers'
    "pytorch_lora_weights.bin",
)
"""What is read of a folder: the first of these."""
SUFFIXES = (".safetensors", ".bin")
SEARCHED = 3
"""How many levels down a folder without any of `WEIGHT_NAMES` is searched for what it does hold."""
PEFT_PREFIX = "base_model.model."  # what PeftModel.from_pretrained expects in a folder
DIFFUSERS_CONFIG = (
    "lora_adapter_metadata"  # header entry from which diffusers takes the LoRA config
)
ALPHA_PATTERN = "alpha_pattern"


def load_adapter(
    path: str | Path, *, family: str | None = None, alpha: float | None = None
) -> NoiseHypernetwork:
    """Read a noise hypernetwork.

    Args:
        path: a folder as peft or diffusers saves it, a .safetensors or a .bin file.
        family: the generator's family; None: what the file says, else what its layers look like.
        alpha: LoRA alpha of every layer, for a file that does not tell it.

    Returns:
        The hypernetwork on the CPU, in the dtype of the file, or float16 where that has 8-bit
        floats; its parameters take gradients.

    Raises:
        AdapterError: the file is missing, damaged, of another kind, or leaves its scale open.
        ValueError: no such family.
    """
    weights = find_weights(Path(path))
    if alpha is not None:
        check_alpha(alpha)
    try:
        # Nodes run in inference mode, whose tensors could never be trained later.
        with torch.inference_mode(False):
            tensors, header = read_tensors(weights)
            return _build(weights, tensors, header, family, alpha)
    except TensorFileError as error:
        raise AdapterError(str(error)) from error
    except AdapterError as error:
        if str(path) in str(error):
            raise
        raise AdapterError(f"{path}: {error}") from error


def read_metadata(path: str | Path) -> AdapterMetadata | None:
    """The metadata in a file's header, without its weights; None where the file is not ours.

    Raises:
        AdapterError: the file is missing or damaged.
    """
    weights = find_weights(Path(path))
    header = read_header(weights)
    if not is_hypernoise_header(header):
        return None
    try:
        return AdapterMetadata.from_header(header)
    except AdapterError as error:
        raise AdapterError(f"{weights}: {error}") from error


def read_header(weights: Path) -> dict[str, str]:
    """The entries in the header of a .safetensors file; a .bin file has none.

    Raises:
        AdapterError: the file is damaged.
    """
    if not is_safetensors(weights):
        return {}
    try:
        with open_safetensors(weights) as file:
            return file.metadata() or {}
    except TensorFileError as error:
        raise AdapterError(str(error)) from error


def find_weights(path: Path) -> Path:
    """The file that holds the weights: `path` itself or the one in that folder.

    Raises:
        AdapterError: names what was looked for.
    """
    if path.is_dir():
        found = [path / name for name in WEIGHT_NAMES if (path / name).is_file()]
        if not found:
            others = name_some(_files_below(path))
            hint = f", but {others}: name the file that is meant" if others else ""
            raise AdapterError(f"the folder {path} holds none of {', '.join(WEIGHT_NAMES)}{hint}")
        return found[0]
    if not path.is_file():
        raise AdapterError(f"there is no adapter at {path}")
    if path.suffix.lower() not in SUFFIXES:
        raise AdapterError(f"{path} is neither a folder nor a .safetensors or .bin file")
    return path


def _files_below(folder: Path) -> list[str]:
    """The files of weights that lie nearest below a folder, as paths from there."""
    for depth in range(1, SEARCHED + 1):
        found = [
            str(path.relative_to(folder))
            for path in folder.glob("/".join("*" * depth))
            if path.suffix.lower() in SUFFIXES and path.is_file()
        ]
        if found:
            return sorted(found)
    return []


def _build(
    path: Path,
    tensors: Mapping[str, Tensor],
    header: Mapping[str, str],
    family_name: str | None,
    alpha: float | None,
) -> NoiseHypernetwork:
    if is_generator_lora(header):
        raise AdapterError(
            "this is a LoRA on the generator itself, not a noise hypernetwork: load it as other "
            "LoRAs, with pipeline.load_lora_weights or ComfyUI's Load LoRA"
        )
    layers = parse_weights(tensors).layers
    ours = AdapterMetadata.from_header(header) if is_hypernoise_header(header) else None
    family = _family(list(layers), ours, family_name)
    config = None if ours else _config(path, header, layers)
    own = {name: w.alpha for name, w in layers.items() if w.alpha is not None}
    if ours is not None:
        told = _agreed(own, _alphas_of_header(layers, ours, header), "the file's header")
    elif config is not None:
        told = _agreed(own, _alphas_of_config(layers, config), "the LoRA configuration")
    else:
        told = own
    alphas = _completed(path, layers, told, alpha)
    branches = {name: LoraBranch(w.down, w.up, alphas[name]) for name, w in layers.items()}
    return NoiseHypernetwork(branches, ours or _metadata(branches, family, config))


def _family(names: list[str], stated: AdapterMetadata | None, asked: str | None) -> Family:
    """The family that file, caller and layer names agree on."""
    if stated and asked and stated.family != asked:
        raise AdapterError(f"the adapter is for {stated.family}, not for {asked}")
    guess = looks_like(names)
    if stated:
        family = family_of_adapter(stated.family, stated.last_layer)
    elif asked:
        family = get_family(asked)
    elif guess is not None:
        family = guess
    else:
        known = ", ".join(family.title for family in FAMILIES)
        raise AdapterError(
            f"no known family ({known}) has the layers {name_some(names)}{whose_names(names)}"
        )
    foreign = [name for name in names if not family.has_layer(name)]
    if foreign:
        like = f"; the adapter looks like {guess.name}" if guess not in (None, family) else ""
        raise AdapterError(
            f"{len(foreign)} of {len(names)} layers do not belong to {family.name}: "
            f"{name_some(foreign)}{like}{whose_names(foreign)}"
        )
    return family


def _config(
    path: Path, header: Mapping[str, str], layers: Mapping[str, LayerWeights]
) -> PeftConfig | None:
    """The LoRA configuration beside the file, else the one diffusers wrote into its header."""
    beside = path.parent / CONFIG_NAME
    names = {name: weights.written for name, weights in layers.items()}
    if beside.is_file():
        return PeftConfig.read(beside, names)
    if DIFFUSERS_CONFIG not in header:
        return None
    try:
        values = parse_object(header[DIFFUSERS_CONFIG])
        values = {plain_name(name): value for name, value in values.items()}
        return PeftConfig(values, names)
    except ValueError as error:
        raise AdapterError(f"{DIFFUSERS_CONFIG} in the header of {path}: {error}") from error


def _alphas_of_header(
    layers: Mapping[str, LayerWeights], metadata: AdapterMetadata, header: Mapping[str, str]
) -> dict[str, float]:
    try:
        own = parse_object(header.get(ALPHA_PATTERN, "{}"))
        for alpha in own.values():
            check_alpha(alpha)
    except ValueError as error:
        raise AdapterError(f"{ALPHA_PATTERN} in the file's header is damaged: {error}") from error
    return {name: float(own.get(name, metadata.alpha)) for name in layers}


def _alphas_of_config(layers: Mapping[str, LayerWeights], config: PeftConfig) -> dict[str, float]:
    expected = config.ranks
    wrong = [
        f"{name} (got {weights.rank}, expected {expected[name]})"
        for name, weights in layers.items()
        if weights.rank != expected[name]
    ]
    if wrong:
        raise AdapterError(f"ranks differ from those in the LoRA configuration: {name_some(wrong)}")
    return config.alphas


def _agreed(
    own: Mapping[str, float], told: Mapping[str, float], source: str
) -> Mapping[str, float]:
    """What the source tells, unless the alphas that stand among the weights contradict it."""
    wrong = [name for name, alpha in own.items() if alpha != told[name]]
    if wrong:
        raise AdapterError(f"alpha in the weights differs from {source}: {name_some(wrong)}")
    return told


def _completed(
    path: Path,
    layers: Mapping[str, LayerWeights],
    told: Mapping[str, float],
    alpha: float | None,
) -> dict[str, float]:
    """Alpha of each layer as the file tells it, else the caller's."""
    silent = [name for name in layers if name not in told]
    if silent and alpha is None:
        ranks = name_some([str(rank) for rank in sorted({layers[name].rank for name in silent})])
        raise AdapterError(
            f"{path} does not tell its LoRA alpha, so its scale alpha / rank is unknown (rank "
            f"{ranks}; the reference trains with alpha = 2 x rank for SANA-Sprint, 5 x rank for "
            f"FLUX, 1 x rank for SD-Turbo). Put its {CONFIG_NAME} beside it, in a folder of their "
            f"own, or write a file that tells alpha: hypernoise export ADAPTER OUT.safetensors "
            f"--alpha ALPHA"
        )
    if alpha is not None and not silent and any(alpha != known for known in told.values()):
        known = name_some([f"{value:g}" for value in sorted(set(told.values()))])
        raise AdapterError(f"alpha {alpha:g} was given, but the file says {known}: leave it out")
    return {name: told.get(name, alpha) for name in layers}


def _metadata(
    branches: Mapping[str, LoraBranch], family: Family, config: PeftConfig | None
) -> AdapterMetadata:
    """Metadata of a foreign file: the rank and alpha of most layers."""
    (rank, alpha), _ = Counter((b.rank, b.alpha) for b in branches.values()).most_common(1)[0]
    return AdapterMetadata(
        family=family.name,
        rank=rank,
        alpha=alpha,
        last_layer=family.last_layer,
        base_model=config.base_model if config else None,
    )


def save_adapter(hypernetwork: NoiseHypernetwork, path: str | Path) -> Path:
    """Write a noise hypernetwork; a reader sees the old file or the whole new one, never a part.

    Args:
        path: one file if it ends in .safetensors, else a folder that peft opens as well.

    Returns:
        The file or folder.

    Raises:
        ValueError: the path is a single file of another kind.
    """
    path = Path(path)
    branches, metadata = hypernetwork.branches, hypernetwork.metadata
    config = json.dumps(config_for(branches, metadata), indent=2)
    own_alphas = {n: b.alpha for n, b in sorted(branches.items()) if b.alpha != metadata.alpha}
    header = metadata.to_header() | {"format": "pt", DIFFUSERS_CONFIG: config}
    if own_alphas:
        header[ALPHA_PATTERN] = json.dumps(own_alphas)
    if is_safetensors(path):
        write_atomically(path, to_safetensors(_tensors(branches, ""), header))
        return path
    if path.suffix.lower() in SUFFIXES or path.is_file():
        raise ValueError(f"adapters are written as .safetensors or into a folder, not as {path}")
    write_atomically(
        path / WEIGHT_NAMES[0], to_safetensors(_tensors(branches, PEFT_PREFIX), header)
    )
    write_atomically(path / CONFIG_NAME, config.encode())
    return path


def _tensors(branches: Mapping[str, LoraBranch], prefix: str) -> dict[str, Tensor]:
    tensors = {}
    for name, branch in branches.items():
        for factor, weight in (("A", branch.down), ("B", branch.up)):
            key = f"{prefix}{name}.lora_{factor}.weight"
            tensors[key] = weight.detach().to("cpu").contiguous()
    return tensors
