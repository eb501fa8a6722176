"""Noise hypernetworks as files: every known form is read, ours is written.

Ours is one .safetensors file with peft's key names and the metadata in its header, or a peft folder
(adapter_config.json and adapter_model.safetensors) whose weights have the same header. Also read:
folders of peft and diffusers with .safetensors or .bin weights, and single files of other programs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from .atomic_file import write_atomically
from .errors import AdapterError
from .families import FAMILIES, Family, family_of_adapter, get_family, looks_like
from .hypernetwork import NoiseHypernetwork
from .lora_branch import LoraBranch
from .metadata import AdapterMetadata, check_alpha, is_hypernoise_header
from .module_names import LayerWeights, name_some, parse_weights, plain_name, whose_names
from .peft_config import CONFIG_NAME, WEIGHTS_NAME, PeftConfig, config_for
from .strict_json import parse_object
from .tensor_file import is_safetensors, to_safetensors

PEFT_PREFIX = "base_model.model."  # what PeftModel.from_pretrained expects in a folder
DIFFUSERS_CONFIG = "lora_adapter_metadata"  # header entry with the LoRA config for diffusers
ALPHA_PATTERN = "alpha_pattern"


def build_hypernetwork(
    path: Path,
    tensors: Mapping[str, Tensor],
    header: Mapping[str, str],
    family_name: str | None = None,
    alpha: float | None = None,
) -> NoiseHypernetwork:
    """The noise hypernetwork that a file holds; the arguments are those of `load_adapter`.

    Args:
        path: of the weights; a LoRA configuration may be next to it.
        tensors: by the names in the file.
        header: entries of a .safetensors header.

    Raises:
        AdapterError: the file holds no noise hypernetwork, or does not state its scale.
        ValueError: there is no such family.
    """
    layers = parse_weights(tensors).layers
    ours = AdapterMetadata.from_header(header) if is_hypernoise_header(header) else None
    family = _family(list(layers), ours, family_name)
    config = None if ours else _config(path, header, layers)
    own = {name: w.alpha for name, w in layers.items() if w.alpha is not None}
    if ours is not None:
        stated = _agreed(own, _alphas_of_header(layers, ours, header), "the file's header")
    elif config is not None:
        stated = _agreed(own, _alphas_of_config(layers, config), "the LoRA configuration")
    else:
        stated = own
    alphas = _completed(path, layers, stated, alpha)
    branches = {name: LoraBranch(w.down, w.up, alphas[name]) for name, w in layers.items()}
    return NoiseHypernetwork(branches, ours or _metadata(branches, family, config))


def _family(names: list[str], stated: AdapterMetadata | None, asked: str | None) -> Family:
    """The family that the file, the caller and the layer names agree on."""
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
    own: Mapping[str, float], stated: Mapping[str, float], source: str
) -> Mapping[str, float]:
    """What the source states, unless alphas among the weights contradict it."""
    wrong = [name for name, alpha in own.items() if alpha != stated[name]]
    if wrong:
        raise AdapterError(f"alpha in the weights differs from {source}: {name_some(wrong)}")
    return stated


def _completed(
    path: Path,
    layers: Mapping[str, LayerWeights],
    stated: Mapping[str, float],
    alpha: float | None,
) -> dict[str, float]:
    """Alpha of each layer: the file's, or else the caller's."""
    silent = [name for name in layers if name not in stated]
    if silent and alpha is None:
        ranks = name_some([str(rank) for rank in sorted({layers[name].rank for name in silent})])
        known = ", ".join(f"{f.alpha_per_rank} x rank for {f.title}" for f in FAMILIES)
        raise AdapterError(
            f"{path} does not state its LoRA alpha, so its scale alpha / rank is unknown (rank "
            f"{ranks}; the reference trains with alpha = {known}). Put its {CONFIG_NAME} next to "
            f"it, in a folder of their own, or write a file that states alpha: hypernoise export "
            f"ADAPTER OUT.safetensors --alpha ALPHA"
        )
    if alpha is not None and not silent and any(alpha != known for known in stated.values()):
        known = name_some([f"{value:g}" for value in sorted(set(stated.values()))])
        raise AdapterError(f"alpha {alpha:g} was given, but the file says {known}: leave it out")
    return {name: stated.get(name, alpha) for name in layers}


def _metadata(
    branches: Mapping[str, LoraBranch], family: Family, config: PeftConfig | None
) -> AdapterMetadata:
    """Metadata of a file that is not ours: rank and alpha are those of most layers."""
    (rank, alpha), _ = Counter((b.rank, b.alpha) for b in branches.values()).most_common(1)[0]
    return AdapterMetadata(
        family=family.name,
        rank=rank,
        alpha=alpha,
        last_layer=family.last_layer,
        base_model=config.base_model if config else None,
    )


def save_adapter(hypernetwork: NoiseHypernetwork, path: str | Path) -> Path:
    """Write a noise hypernetwork; a reader sees the old file or the complete new one.

    Args:
        path: a single file if it ends in .safetensors, else a folder that peft can open as well.

    Returns:
        The file or folder.

    Raises:
        ValueError: the path is a single file of another kind.
        OSError: the file cannot be written.
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
    if path.suffix.lower() == ".bin" or path.is_file():
        raise ValueError(f"an adapter is saved as a .safetensors file or a folder, not as {path}")
    write_atomically(path / WEIGHTS_NAME, to_safetensors(_tensors(branches, PEFT_PREFIX), header))
    write_atomically(path / CONFIG_NAME, config.encode())
    return path


def _tensors(branches: Mapping[str, LoraBranch], prefix: str) -> dict[str, Tensor]:
    tensors = {}
    for name, branch in branches.items():
        for factor, weight in (("A", branch.down), ("B", branch.up)):
            key = f"{prefix}{name}.lora_{factor}.weight"
            tensors[key] = weight.detach().to("cpu").contiguous()
    return tensors
