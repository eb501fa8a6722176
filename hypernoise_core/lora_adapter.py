"""LoRA branches on the layers of one family's network: what every adapter here is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from .errors import AdapterError
from .families import Family, family_of_adapter, looks_like
from .lora import adaptable_layers, misfit, modules_by_name, new_branch, own_targets
from .lora_branch import LoraBranch, LoraTarget
from .metadata import AdapterMetadata

SHOWN_MISFITS = 8


class LoraAdapter(nn.Module):
    """Branches by layer name, and the metadata of their file.

    Args:
        branches: by the name of the layer in the family's diffusers network.
        metadata: `dataclasses.replace` it to note the training.
    """

    kind: ClassVar[str]
    """What such an adapter is called in messages."""

    def __init__(self, branches: Mapping[str, LoraBranch], metadata: AdapterMetadata) -> None:
        super().__init__()
        self.metadata = metadata
        self.family: Family = family_of_adapter(metadata.family, metadata.last_layer)
        self._names = tuple(branches)
        self._branches = nn.ModuleList(branches.values())

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the adapted layers, as diffusers names them."""
        return self._names

    @property
    def branches(self) -> dict[str, LoraBranch]:
        return dict(zip(self._names, self._branches, strict=True))

    def check_fits(
        self, network: nn.Module, targets: Mapping[str, LoraTarget] | None = None
    ) -> None:
        """Check that every branch fits its layer of the network.

        Raises:
            AdapterError: names the layers, their shapes and the family the adapter looks like.
        """
        targets = own_targets(self.layer_names) if targets is None else targets
        modules = modules_by_name(network)
        problems = []
        for name, branch in self.branches.items():
            if name not in targets or targets[name].module not in modules:
                problems.append(f"{name}: the network has no such layer")
            elif problem := misfit(branch, modules[targets[name].module], targets[name]):
                problems.append(f"{name}: {problem}")
        if problems:
            raise AdapterError(self._misfit_message(network, problems))

    def _misfit_message(self, network: nn.Module, problems: list[str]) -> str:
        shown = "\n  ".join(problems[:SHOWN_MISFITS])
        more = f"\n  and {len(problems) - SHOWN_MISFITS} more" * (len(problems) > SHOWN_MISFITS)
        family = looks_like(self.layer_names)
        return (
            f"the adapter does not fit this {type(network).__name__}: {len(problems)} of "
            f"{len(self.layer_names)} layers do not match. The adapter looks like "
            f"{family.name if family else 'no known family'}; load the base model it was made for."
            f"\n  {shown}{more}"
        )


def initial_branches(
    network: nn.Module,
    family: Family,
    rank: int,
    alpha: float,
    adapt_depthwise: bool,
    generator: torch.Generator | None,
) -> dict[str, LoraBranch]:
    """New branches for every Linear and Conv2d of the network, in float32 on the CPU, giving 0.

    Args:
        network: of the family.
        adapt_depthwise: also for grouped convolutions.
        generator: a CPU generator for A; None: torch's global one.

    Raises:
        AdapterError: the network is not of the family.
    """
    layers = adaptable_layers(network, adapt_depthwise)
    foreign = [name for name in layers if not family.has_layer(name)]
    if foreign:
        raise AdapterError(
            f"{type(network).__name__} is not a network of {family.name}, which takes a "
            f"{family.network_class}: it has the layer {foreign[0]}"
        )
    return {name: new_branch(layer, rank, alpha, generator) for name, layer in layers.items()}
