"""The method: a noise hypernetwork f, and the noise it modulates (arXiv 2508.09968).

f is the frozen generator's own network with LoRA branches on it, whose last layer gives its branch
alone, so that f = 0 while the branches are zero. The generator then runs on x0 + f(x0, c).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from .families import Conditioning, Family, family_of_adapter, get_family, looks_like
from .lora import LoraBranch, LoraTarget, adaptable_layers, attach, misfit, modules_by_name
from .metadata import AdapterError, AdapterMetadata

SHOWN_MISFITS = 8


class NoiseHypernetwork(nn.Module):
    """The LoRA weights of f; the frozen network they act on is an argument of each call.

    Args:
        branches: by the name of the layer in the family's diffusers network.
        metadata: `family` and `last_layer` are used; `dataclasses.replace` it to note the training.

    Raises:
        AdapterError: the last layer has no branch, so f is not defined.
    """

    def __init__(self, branches: Mapping[str, LoraBranch], metadata: AdapterMetadata) -> None:
        super().__init__()
        self.metadata = metadata
        self.family: Family = family_of_adapter(metadata.family, metadata.last_layer)
        if self.last_layer not in branches:
            raise AdapterError(
                f"the adapter has no weights for the last layer {self.last_layer!r} of "
                f"{self.family.name}, so it is no noise hypernetwork but an ordinary LoRA"
            )
        self._names = tuple(branches)
        self._branches = nn.ModuleList(branches.values())

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
    ) -> NoiseHypernetwork:
        """A new f on every Linear and Conv2d of the network, in float32 on the CPU; f = 0.

        A is Gaussian with deviation 1 / rank (peft's "gaussian"), B is zero.

        Args:
            network: the frozen network of a diffusers pipeline.
            adapt_depthwise: also adapt grouped convolutions, as the released SANA-Sprint adapters
                do (dense factors, which peft >= 0.16 cannot open).
            generator: a CPU generator for A.
            base_model: repository or folder of the generator, for the metadata.

        Raises:
            AdapterError: the network is not of the family.
        """
        family = get_family(family) if isinstance(family, str) else family
        metadata = AdapterMetadata(
            family=family.name,
            rank=rank,
            alpha=float(alpha),
            last_layer=family.last_layer,
            base_model=base_model,
        )
        layers = adaptable_layers(network, adapt_depthwise)
        foreign = [name for name in layers if not family.has_layer(name)]
        if foreign:
            raise AdapterError(
                f"{type(network).__name__} is no network of {family.name}, which takes a "
                f"{family.network_class}: it has the layer {foreign[0]}"
            )
        branches = {name: _new_branch(m, rank, alpha, generator) for name, m in layers.items()}
        return cls(branches, metadata)

    @property
    def last_layer(self) -> str:
        return self.metadata.last_layer

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
        """Make sure that every branch has its place on the network.

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

    def attached(
        self, network: nn.Module, targets: Mapping[str, LoraTarget] | None = None
    ) -> AbstractContextManager[set[str]]:
        """A context in which calls of the network compute f; see `lora.attach`.

        Args:
            targets: where each layer lands; None: the network has diffusers' own names.

        Raises:
            AdapterError: a branch does not fit.
        """
        self.check_fits(network, targets)
        targets = own_targets(self.layer_names) if targets is None else targets
        return attach(network, self.branches, targets, self.last_layer)

    def forward(self, network: nn.Module, noise: Tensor, conditioning: Conditioning) -> Tensor:
        """f(x0, c) at strength 1.

        Args:
            network: the family's diffusers network.
            noise: x0 ~ N(0, 1), (B, C, H, W).
            conditioning: what `Family.encode` gives for B prompts.

        Returns:
            (B, C, H, W) in the noise's dtype.
        """
        with self.attached(network):
            return self.family.predict(network, noise, conditioning)


def own_targets(layer_names: Iterable[str]) -> dict[str, LoraTarget]:
    """Targets for a network whose modules have the adapter's own names."""
    return {name: LoraTarget(name) for name in layer_names}


def _new_branch(
    layer: nn.Module, rank: int, alpha: float, generator: torch.Generator | None
) -> LoraBranch:
    if isinstance(layer, nn.Conv2d):
        down, up = (rank, layer.in_channels, *layer.kernel_size), (layer.out_channels, rank, 1, 1)
    else:
        down, up = (rank, layer.in_features), (layer.out_features, rank)
    return LoraBranch(torch.randn(down, generator=generator) / rank, torch.zeros(up), alpha)


def seed_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator for each image."""
    return [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds]


def draw_noise(
    shape: Sequence[int],
    generators: Sequence[torch.Generator],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """x0 ~ N(0, 1), one image from each generator, drawn on the CPU in float32.

    Args:
        shape: of one image's latent, (C, H, W).

    Returns:
        (B, C, H, W) for B generators, the values diffusers' pipelines draw from the same ones.
    """
    images = [torch.randn(1, *shape, generator=generator) for generator in generators]
    return torch.cat(images).to(device=device, dtype=dtype)


def sample_noise(
    shape: Sequence[int],
    seeds: Sequence[int],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """x0 ~ N(0, 1), one seed for each image, so that an image does not depend on its batch.

    Args:
        shape: of one image's latent, (C, H, W), see `Family.latent_shape`.

    Returns:
        (B, C, H, W) for B seeds.
    """
    return draw_noise(shape, seed_generators(seeds), device=device, dtype=dtype)


def predict_delta(
    hypernetwork: nn.Module,
    network: nn.Module,
    noise: Tensor,
    conditioning: Conditioning,
    strength: float = 1.0,
) -> Tensor:
    """strength * f(x0, c), (B, C, H, W); strength 0 runs no pass and gives zeros."""
    if strength == 0:
        return torch.zeros_like(noise)
    delta = hypernetwork(network, noise, conditioning)
    return delta if strength == 1 else strength * delta


def modulate(noise: Tensor, delta: Tensor) -> Tensor:
    """x0' = x0 + f(x0, c), the noise the generator runs on; (B, C, H, W)."""
    return noise + delta


def noise_penalty(delta: Tensor) -> Tensor:
    """Mean of f^2 over batch and elements, a scalar: the L2 form of the paper's bound on the KL."""
    return delta.square().mean()
