"""A LoRA on the generator itself, trained on the same rewards: what the method is compared with.

Its file is an ordinary LoRA for diffusers and ComfyUI. It has no alpha: B is stored times
alpha / rank, because without an alpha both take the scale for 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from .atomic_file import write_atomically
from .errors import AdapterError
from .families import Family, family_of_adapter, get_family
from .lora import attach, own_targets
from .lora_adapter import LoraAdapter, initial_branches
from .lora_branch import LoraBranch
from .metadata import GENERATOR_LORA, AdapterMetadata
from .module_names import parse_weights
from .tensor_file import is_safetensors, to_safetensors


class GeneratorLora(LoraAdapter):
    """The LoRA weights; the frozen network they act on is an argument of `attached`."""

    kind = "LoRA on the generator"

    @classmethod
    def initialise(
        cls,
        network: nn.Module,
        family: Family | str,
        *,
        rank: int,
        alpha: float,
        adapt_depthwise: bool = False,
        generator: torch.Generator | None = None,
        base_model: str | None = None,
    ) -> GeneratorLora:
        """A new LoRA on every Linear and Conv2d of the network, in float32 on the CPU, giving 0.

        A is Gaussian with deviation 1 / rank (peft's "gaussian"), B is zero.

        Args:
            network: the frozen network of a diffusers pipeline.
            adapt_depthwise: refused where the network has grouped convolutions, because no LoRA
                file can hold a dense branch beside one.
            generator: a CPU generator for A.
            base_model: repository or folder of the generator, for the metadata.

        Raises:
            AdapterError: the network is not of the family, or has layers that cannot be adapted.
        """
        family = get_family(family) if isinstance(family, str) else family
        if adapt_depthwise:
            _refuse_grouped(network)
        metadata = AdapterMetadata(
            family=family.name,
            rank=rank,
            alpha=float(alpha),
            last_layer=family.last_layer,
            base_model=base_model,
        )
        return cls(initial_branches(network, family, rank, alpha, False, generator), metadata)

    def attached(self, network: nn.Module) -> AbstractContextManager[set[str]]:
        """A context in which every layer adds its branch in calls of the network; see `attach`.

        Args:
            network: the family's diffusers network.

        Raises:
            AdapterError: a branch does not fit.
        """
        self.check_fits(network)
        return attach(network, self.branches, own_targets(self.layer_names))


def _refuse_grouped(network: nn.Module) -> None:
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            raise AdapterError(
                f"adapt_depthwise is for noise hypernetworks: neither diffusers nor ComfyUI could "
                f"load a LoRA on the generator that adapts the depthwise convolution {name}"
            )


def save_generator_lora(
    lora: GeneratorLora,
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    for_comfyui: bool = False,
) -> Path:
    """Write a LoRA that `pipeline.load_lora_weights` takes, and ComfyUI's Load LoRA as well.

    One file serves both for FLUX and SD-Turbo. SANA-Sprint has no name that both know: its file is
    for diffusers, or for ComfyUI, which knows the layers by the names of its own network only.

    Args:
        path: of the .safetensors file; a reader sees the old one or the whole new one.
        dtype: of the weights.
        for_comfyui: write names for ComfyUI where one file cannot serve both.

    Raises:
        ValueError: the path has another ending, or a weight is no finite number in that dtype.
    """
    path = Path(path)
    if not is_safetensors(path):
        raise ValueError(f"a LoRA is saved as one .safetensors file, not as {path}")
    tensors = {}
    for name, branch in lora.branches.items():
        down, up = lora.family.lora_keys(name, for_comfyui)
        tensors[down] = _stored(branch.down, dtype, name)
        tensors[up] = _stored(branch.up.float() * branch.scale, dtype, name)
    metadata = replace(lora.metadata, alpha=float(lora.metadata.rank))
    header = metadata.to_header() | GENERATOR_LORA | {"format": "pt"}
    write_atomically(path, to_safetensors(tensors, header))
    return path


def _stored(weight: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    stored = weight.detach().to("cpu", dtype).contiguous()
    if not torch.isfinite(stored).all():
        raise ValueError(f"weights of {name} are too large for {dtype}, or not finite")
    return stored


def build_generator_lora(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> GeneratorLora:
    """The LoRA that a file of `save_generator_lora` holds, with alpha = rank.

    Args:
        tensors: by the names in the file.
        header: entries of its header.

    Raises:
        AdapterError: the header or the weights are damaged.
    """
    metadata = AdapterMetadata.from_header(header)
    family = family_of_adapter(metadata.family, metadata.last_layer)
    layers = parse_weights({family.plain_lora_key(key): t for key, t in tensors.items()}).layers
    branches = {
        name: LoraBranch(weights.down, weights.up, alpha=weights.down.shape[0])
        for name, weights in layers.items()
    }
    return GeneratorLora(branches, metadata)
