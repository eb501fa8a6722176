"""LoRA branches on the modules of a frozen network, through forward hooks inside a context manager.

The network never changes: no weight is written to, and every hook is gone when the context ends,
also after an exception. A branch is computed next to its layer or, where that costs less and no
gradient is recorded, inside its weight (lora_merge.py). Letters: r rank, i and o input and output
features, kh and kw kernel size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from .execution import recomputed_inside, run_eagerly, turn_of
from .lora_branch import LoraBranch, LoraTarget, Placement
from .lora_merge import break_even, can_merge, merged_weight

_WRAPPER = "_orig_mod"  # of torch.compile


@contextmanager
def attach(
    network: nn.Module,
    branches: Mapping[str, LoraBranch],
    targets: Mapping[str, LoraTarget],
    last_layer: str | None = None,
) -> Iterator[set[str]]:
    """Add the branches to the network's layers for the calls made inside the context.

    The layer named `last_layer` returns its branch alone, without its own weight and bias. Blocks
    that the network recomputes during backward (gradient checkpointing) are recomputed with the
    branches, though the context has ended by then; call backward outside the context. A compiled
    network runs uncompiled inside, because compiled code does not see hooks.

    One thread at a time is inside for a network, others wait for it, see `execution.turn_of`; calls
    of the network outside such a context do not, so a server that makes them takes the turn itself.

    Args:
        network: the frozen network; only its modules' inputs and outputs are used.
        branches: by layer name; each name is in `targets` and its module in the network.
        targets: where each layer is on the network.
        last_layer: a name in `branches`; None: every layer adds its branch.

    Yields:
        The paths of the modules that have run with their branches so far.
    """
    named = dict(network.named_modules())
    modules = _without_wrappers(named)
    placements: dict[str, list[Placement]] = {}
    for name, branch in branches.items():
        placement = Placement(targets[name], branch)
        placements.setdefault(placement.target.module, []).append(placement)
    replaced = None if last_layer is None else targets[last_layer].module
    ran: set[str] = set()
    hooks = _Hooks(
        turn_of(network),
        [
            _LayerHooks(path, modules[path], placed, path == replaced, ran)
            for path, placed in placements.items()
        ],
    )
    everything = named.values()
    with (
        hooks.turn,
        run_eagerly(everything),
        recomputed_inside(everything, hooks.recomputing),
        hooks.attached(),
    ):
        yield ran


class _Hooks:
    """Forward hooks on layers of a network, there for a while.

    Args:
        turn: the lock of the network.
    """

    def __init__(self, turn: AbstractContextManager, layers: list[_LayerHooks]) -> None:
        self.turn, self.layers = turn, layers
        self.handles: list[torch.utils.hooks.RemovableHandle] = []
        self.is_attached = False

    @contextmanager
    def attached(self) -> Iterator[None]:
        """For calls of the network; the caller has the turn."""
        with self._registered():
            self.is_attached = True
            try:
                yield
            finally:
                self.is_attached = False

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        """For a block that backward recomputes, on CUDA in another thread."""
        if self.is_attached:  # backward inside the context: its thread has the turn, and waits
            yield
            return
        with self.turn:
            if self.handles:  # a block inside a block
                yield
                return
            with self._registered():
                yield

    @contextmanager
    def _registered(self) -> Iterator[None]:
        try:
            for layer in self.layers:
                self.handles += layer.register()
            yield
        finally:
            for handle in self.handles:
                handle.remove()
            self.handles.clear()
            for layer in self.layers:
                layer.restore()


class _LayerHooks:
    """Forward hooks of one layer that add its branches, or return them alone if `replace`."""

    def __init__(
        self,
        path: str,
        layer: nn.Module,
        placements: Sequence[Placement],
        replace: bool,
        ran: set[str],
    ) -> None:
        self.path, self.layer, self.placements, self.ran = path, layer, placements, ran
        self.replace = replace
        self.break_even = break_even(placements)
        self.weight: nn.Parameter | None = None  # the layer's own, while it runs with a merged one

    def register(self) -> list[torch.utils.hooks.RemovableHandle]:
        after = self.layer.register_forward_hook(self.after, with_kwargs=True)
        if self.replace:
            return [after]
        return [after, self.layer.register_forward_pre_hook(self.before, with_kwargs=True)]

    def before(self, layer: nn.Module, args: tuple, kwargs: dict) -> None:
        if torch.is_grad_enabled():
            return
        if can_merge(layer, _features(args, kwargs), self.break_even):
            self.weight = layer.weight
            # Not `layer.weight = ...`, which takes nothing but a Parameter.
            layer._parameters["weight"] = merged_weight(self.weight, self.placements)

    def after(self, layer: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor | None:
        self.ran.add(self.path)
        if self.weight is not None:
            return self.restore()
        result = torch.zeros_like(output) if self.replace else output
        for target, branch in self.placements:
            result = _added(result, branch, _features(args, kwargs), layer, target)
        return result

    def restore(self) -> None:
        """Restore the layer's own weight, also where its call has raised."""
        if self.weight is not None:
            self.layer._parameters["weight"] = self.weight
            self.weight = None


def _features(args: tuple, kwargs: dict) -> Tensor:
    """The input of a Linear or a Conv2d."""
    return args[0] if args else next(iter(kwargs.values()))


def _added(
    output: Tensor, branch: LoraBranch, features: Tensor, layer: nn.Module, target: LoraTarget
) -> Tensor:
    """`output` plus the branch on its slice of the features, which are an image's channels.

    Where no gradient is recorded the product goes straight into the layer's own output: a sum of
    two tensors costs more than the branch beside a small layer.
    """
    dim = 1 if branch.up.ndim == 4 else -1
    if not torch.is_grad_enabled() and _fits(output, branch, features):
        hidden, up = branch.factors(features, layer)
        place = output.narrow(dim, target.offset, len(up))
        _add_product(place, hidden, target.placed(up), branch.scale)
        return output
    product = target.placed(branch(features, layer).to(output.dtype), dim)
    if product.shape == output.shape:
        return output + product
    output = output.clone()
    output.narrow(dim, target.offset, product.shape[dim]).add_(product)
    return output


def _fits(output: Tensor, branch: LoraBranch, features: Tensor) -> bool:
    """Whether `_add_product` can write into the output."""
    dense = output.is_contiguous() or (
        branch.up.ndim == 4 and output.is_contiguous(memory_format=torch.channels_last)
    )
    grouped = branch.up.shape[1] != branch.rank
    return dense and not grouped and output.dtype == features.dtype


def _add_product(place: Tensor, hidden: Tensor, up: Tensor, scale: float) -> None:
    """Adds the product of both factors, times the scale, to a slice of dense features.

    Args:
        place: (..., o) or (B, o, H, W).
    """
    matrix = up.flatten(1)
    if up.ndim == 4 and place.stride(1) != 1:
        maps = place.flatten(2)  # (B, o, H W)
        maps.baddbmm_(matrix.expand(len(maps), -1, -1), hidden.flatten(2), alpha=scale)
        return
    if up.ndim == 4:  # channels last
        place, hidden = place.permute(0, 2, 3, 1), hidden.permute(0, 2, 3, 1)
    rows = place.view(-1, len(matrix))
    rows.addmm_(hidden.reshape(-1, matrix.shape[1]), matrix.t(), alpha=scale)


def modules_by_name(network: nn.Module) -> dict[str, nn.Module]:
    """The network's modules by path, without the wrapper that `torch.compile` puts into it."""
    return _without_wrappers(dict(network.named_modules()))


def _without_wrappers(modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    if not any(_WRAPPER in name for name in modules):
        return modules
    return {
        ".".join(part for part in name.split(".") if part != _WRAPPER): module
        for name, module in modules.items()
    }


def adaptable_layers(network: nn.Module, adapt_depthwise: bool) -> dict[str, nn.Module]:
    """Every Linear and Conv2d of the network by path, grouped convolutions only if asked for."""
    return {
        name: module
        for name, module in modules_by_name(network).items()
        if isinstance(module, nn.Linear)
        or (isinstance(module, nn.Conv2d) and (module.groups == 1 or adapt_depthwise))
    }


def own_targets(layer_names: Iterable[str]) -> dict[str, LoraTarget]:
    """Targets for a network whose modules have the adapter's own names."""
    return {name: LoraTarget(name) for name in layer_names}


def new_branch(
    layer: nn.Module, rank: int, alpha: float, generator: torch.Generator | None
) -> LoraBranch:
    """A branch in float32 on the CPU that gives 0: A ~ N(0, 1 / rank^2), B zero, both dense."""
    if isinstance(layer, nn.Conv2d):
        down, up = (rank, layer.in_channels, *layer.kernel_size), (layer.out_channels, rank, 1, 1)
    else:
        down, up = (rank, layer.in_features), (layer.out_features, rank)
    return LoraBranch(torch.randn(down, generator=generator) / rank, torch.zeros(up), alpha)


def misfit(branch: LoraBranch, layer: nn.Module, target: LoraTarget) -> str | None:
    """Why the branch does not fit there, with got and expected shapes; None where it fits.

    Reads the layer's declared sizes and never its weight, which may be elsewhere or quantised.
    """
    shapes = _expected_shapes(layer, branch.rank)
    if shapes is None:
        return f"{type(layer).__name__} is neither a Linear nor a Conv2d"
    down, ups = shapes
    room = ups[0][0] - target.offset
    width = room if target.size is None else target.size
    if width > room:
        return f"features {target.offset} to {target.offset + width} exceed its {ups[0][0]}"
    ups = [(width, *up[1:]) for up in ups]
    got_down, got_up = tuple(branch.down.shape), tuple(branch.up.shape)
    if got_down == down and got_up in ups:
        return None
    return f"got A {got_down} B {got_up}, expected A {down} B {' or '.join(map(str, ups))}"


def _expected_shapes(layer: nn.Module, rank: int) -> tuple[tuple, list[tuple]] | None:
    """Shape of A and the possible shapes of B for a Linear or Conv2d; None for other layers."""
    if hasattr(layer, "in_features") and hasattr(layer, "out_features"):
        return (rank, layer.in_features), [(layer.out_features, rank)]
    if hasattr(layer, "in_channels") and len(getattr(layer, "kernel_size", ())) == 2:
        ups = [(layer.out_channels, rank, 1, 1)]
        if layer.groups > 1 and rank % layer.groups == 0:
            ups.append((layer.out_channels, rank // layer.groups, 1, 1))
        return (rank, layer.in_channels, *layer.kernel_size), ups
    return None
