"""LoRA branches computed beside layers, against the same thing written out."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hypernoise.hypernoise_core.lora import attach, misfit
from hypernoise.hypernoise_core.lora_branch import LoraBranch, LoraTarget

TARGETS = {"a": LoraTarget("layers.layer")}


class Network(nn.Module):
    """Layers by name, called one behind the other."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)

    def forward(self, x):
        for layer in self.layers.values():
            x = layer(x)
        return x


def branch_for(layer: nn.Module, rank: int = 4, alpha: float = 6.0, groups: int = 1) -> LoraBranch:
    if isinstance(layer, nn.Conv2d):
        down = torch.randn(rank, layer.in_channels, *layer.kernel_size)
        up = torch.randn(layer.out_channels, rank // groups, 1, 1)
    else:
        down, up = torch.randn(rank, layer.in_features), torch.randn(layer.out_features, rank)
    return LoraBranch(down, up, alpha)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def with_last(network: Network, width: int, conv: bool) -> tuple[Network, LoraBranch]:
    """The network and a last layer whose branch is the identity, which lets the output through."""
    layer = nn.Conv2d(width, width, 1) if conv else nn.Linear(width, width)
    eye = torch.eye(width)[..., None, None] if conv else torch.eye(width)
    network.layers["last"] = layer
    return network, LoraBranch(eye.clone(), eye.clone(), alpha=width)


def output_of(layer: nn.Module, branches, targets, x, width: int):
    """What the layer gives with the branches on it."""
    conv = isinstance(layer, nn.Conv2d)
    network, identity = with_last(Network(layer=layer), width, conv)
    all_targets = {**targets, "last": LoraTarget("layers.last")}
    with torch.no_grad(), attach(network, {**branches, "last": identity}, all_targets, "last"):
        return network(x)


def test_linear_branch_is_added():
    layer, x = nn.Linear(6, 8), torch.randn(2, 5, 6)
    b = branch_for(layer)
    got = output_of(layer, {"a": b}, {"a": LoraTarget("layers.layer")}, x, 8)
    torch.testing.assert_close(got, layer(x) + x @ b.down.T @ b.up.T * (6 / 4))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 1},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": (3, 1), "padding": (1, 0)},
    ],
)
def test_conv_branch_takes_the_layers_geometry(options):
    layer, x = nn.Conv2d(6, 8, **options), torch.randn(2, 6, 9, 9)
    b = branch_for(layer)
    got = output_of(layer, {"a": b}, {"a": LoraTarget("layers.layer")}, x, 8)
    # A low-rank branch is one convolution whose kernel is the product of the factors.
    kernel = torch.einsum("or,rihw->oihw", b.up[..., 0, 0], b.down) * (6 / 4)
    merged = copy.deepcopy(layer)
    merged.weight.data += kernel
    torch.testing.assert_close(got, merged(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("groups", [6, 2])
def test_dense_branch_beside_a_grouped_convolution(groups):
    layer, x = nn.Conv2d(6, 6, 3, padding=1, groups=groups), torch.randn(2, 6, 7, 7)
    b = branch_for(layer, rank=4)
    assert misfit(b, layer, LoraTarget("layers.layer")) is None
    got = output_of(layer, {"a": b}, {"a": LoraTarget("layers.layer")}, x, 6)
    dense = torch.einsum("or,rihw->oihw", b.up[..., 0, 0], b.down) * (6 / 4)
    expected = layer(x) + F.conv2d(x, dense, padding=1)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_grouped_up_factor_beside_a_grouped_convolution():
    layer, x = nn.Conv2d(6, 6, 3, padding=1, groups=3), torch.randn(2, 6, 7, 7)
    b = branch_for(layer, rank=12, groups=3)
    assert misfit(b, layer, LoraTarget("layers.layer")) is None
    got = output_of(layer, {"a": b}, {"a": LoraTarget("layers.layer")}, x, 6)
    hidden = F.conv2d(x, b.down, padding=1)
    parts = [F.conv2d(h, u) for h, u in zip(hidden.chunk(3, 1), b.up.chunk(3, 0), strict=True)]
    torch.testing.assert_close(got, layer(x) + torch.cat(parts, 1) * (6 / 12))


def test_a_grouped_up_factor_fits_no_rank_that_the_groups_do_not_divide():
    layer = nn.Conv2d(6, 6, 3, groups=2)
    b = LoraBranch(torch.randn(5, 6, 3, 3), torch.randn(6, 2, 1, 1), alpha=1)
    assert "got A (5, 6, 3, 3) B (6, 2, 1, 1)" in misfit(b, layer, LoraTarget("layers.layer"))


def test_slices_of_a_fused_layer_equal_separate_layers():
    fused, x = nn.Linear(6, 15), torch.randn(2, 6)
    names = ("q", "k", "v")
    separate = {name: nn.Linear(6, 5) for name in names}
    for i, layer in enumerate(separate.values()):
        layer.weight.data = fused.weight.data[5 * i : 5 * i + 5]
        layer.bias.data = fused.bias.data[5 * i : 5 * i + 5]
    branches = {name: branch_for(layer) for name, layer in separate.items()}
    targets = {name: LoraTarget("layers.layer", 5 * i, 5) for i, name in enumerate(names)}
    got = output_of(fused, branches, targets, x, 15)
    alone = [
        output_of(separate[name], {name: branches[name]}, {name: LoraTarget("layers.layer")}, x, 5)
        for name in names
    ]
    torch.testing.assert_close(got, torch.cat(alone, -1))


def test_slice_of_a_convolution_is_a_slice_of_channels():
    layer, x = nn.Conv2d(3, 8, 1), torch.randn(2, 3, 8, 8)  # as wide as it has channels
    b = branch_for(nn.Conv2d(3, 2, 1))
    got = output_of(layer, {"a": b}, {"a": LoraTarget("layers.layer", 4, 2)}, x, 8)
    difference = (got - layer(x)).abs().amax(dim=(0, 2, 3)) > 1e-3
    assert difference.tolist() == [False] * 4 + [True] * 2 + [False] * 2


def test_swapped_halves_equal_the_layer_with_its_halves_swapped():
    layer, x = nn.Linear(6, 8), torch.randn(2, 6)
    swapped = nn.Linear(6, 8)
    swapped.weight.data, swapped.bias.data = layer.weight.roll(4, 0), layer.bias.roll(4, 0)
    b = branch_for(layer)
    straight = output_of(layer, {"a": b}, {"a": LoraTarget("layers.layer")}, x, 8)
    target = LoraTarget("layers.layer", swap_halves=True)
    got = output_of(swapped, {"a": b}, {"a": target}, x, 8)
    torch.testing.assert_close(got, straight.roll(4, -1))


def channels_last(x):
    return x.to(memory_format=torch.channels_last)


class Transposed(nn.Linear):
    """Gives its output in an order of memory of its own."""

    def forward(self, x):
        return F.linear(x, self.weight, self.bias).transpose(0, 1).contiguous().transpose(0, 1)


class Widened(nn.Linear):
    """Gives another dtype than it takes."""

    def forward(self, x):
        return super().forward(x).double()


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(6, 8), torch.randn(2, 3, 5, 6)),
        (nn.Linear(6, 8), torch.randn(6)),
        (Transposed(6, 8), torch.randn(2, 5, 6)),
        (Widened(6, 8), torch.randn(2, 5, 6)),
        (nn.Conv2d(6, 8, 3, padding=1), torch.randn(2, 6, 4, 4)),
        (nn.Conv2d(6, 8, 3, padding=1), channels_last(torch.randn(2, 6, 4, 4))),
        (nn.Conv2d(6, 8, 4), torch.randn(2, 6, 4, 4)),
    ],
)
@pytest.mark.parametrize("target", [{}, {"offset": 3, "size": 4}, {"swap_halves": True}])
def test_the_branch_is_the_same_with_and_without_gradient(layer, x, target):
    """With one nothing is written into what the layer gave, which backward may need."""
    conv = isinstance(layer, nn.Conv2d)
    size = target.get("size", 8)
    narrow = nn.Conv2d(6, size, layer.kernel_size) if conv else nn.Linear(6, size)
    b = branch_for(narrow)
    kept = []
    layer.register_forward_hook(lambda module, args, output: kept.append((output, output.clone())))
    network = Network(layer=layer)
    results = []
    for recorded in (False, True):
        with (
            torch.set_grad_enabled(recorded),
            attach(network, {"a": b}, {"a": LoraTarget("layers.layer", **target)}),
        ):
            results.append(network(x))
    in_float32 = {"rtol": 1e-5, "atol": 1e-4}  # whatever the dtype of the output
    torch.testing.assert_close(results[0], results[1].detach(), **in_float32)
    assert torch.equal(*kept[1])
    expected = kept[1][1].detach().clone()
    branch = b(x, layer).detach().to(expected.dtype)
    if target.get("swap_halves"):
        branch = branch.roll(4, 1 if conv else -1)
    expected.narrow(1 if conv else -1, target.get("offset", 0), size).add_(branch)
    torch.testing.assert_close(results[0], expected, **in_float32)


def at_call(layer, seen):
    """Notes the weight that the layer runs with."""
    layer.register_forward_pre_hook(lambda module, args: seen.append(module.weight))


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("alone", [False, True])
def test_a_layer_that_gives_another_dtype_than_it_takes_keeps_to_it(recorded, alone):
    """As layers that compute in bfloat16 whatever comes in: what follows would not take another."""

    class Narrowed(nn.Linear):
        def forward(self, x):
            return super().forward(x).bfloat16()

    layer, x = Narrowed(6, 8), torch.randn(2, 6)
    b, last = branch_for(layer), "a" if alone else None
    plain = layer(x).detach()
    with torch.set_grad_enabled(recorded), attach(layer, {"a": b}, {"a": LoraTarget("")}, last):
        got = layer(x)
    expected = b(x, layer) if alone else plain + b(x, layer)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 8), (40, 6)),
        (nn.Conv2d(6, 8, 3, padding=1, stride=2), (2, 6, 16, 16)),
        (channels_last(nn.Conv2d(6, 8, 3, padding=1)), (2, 6, 16, 16)),
        (nn.Conv2d(6, 8, 1), (2, 6, 16, 16)),
    ],
)
@pytest.mark.parametrize("target", [{}, {"offset": 3, "size": 4}, {"swap_halves": True}])
def test_many_positions_run_with_the_branch_in_the_weight(layer, shape, target):
    size, seen = target.get("size", 8), []
    conv = isinstance(layer, nn.Conv2d)
    b = branch_for(nn.Conv2d(6, size, layer.kernel_size) if conv else nn.Linear(6, size)).double()
    network, targets = Network(layer=layer.double()), {"a": LoraTarget("layers.layer", **target)}
    own, values, x = layer.weight, layer.weight.detach().clone(), torch.randn(shape).double()
    if conv and not layer.weight.is_contiguous():
        x = channels_last(x)
    with torch.no_grad(), attach(network, {"a": b}, targets):
        at_call(layer, seen)
        merged = network(x)
    with attach(network, {"a": b}, targets):
        beside = network(x)
    torch.testing.assert_close(merged, beside.detach())
    assert not torch.equal(seen[0], own) and seen[0].stride() == own.stride()
    assert layer.weight is own and torch.equal(own, values)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Linear(6, 8), (1, 6)), (nn.Conv2d(6, 8, 3, stride=4, padding=1), (1, 6, 8, 8))],
    ids=["one vector", "four places of a large step"],
)
def test_few_positions_run_with_the_branch_beside_the_layer(layer, shape):
    seen = []
    with torch.no_grad(), attach(Network(layer=layer), {"a": branch_for(layer)}, TARGETS):
        at_call(layer, seen)
        layer(torch.randn(shape))
    assert seen == [layer.weight]


class Failing(nn.Linear):
    def forward(self, x):
        super().forward(x)
        raise InterruptedError


def test_a_call_that_fails_leaves_the_layer_its_own_weight():
    layer = Failing(6, 8)
    own = layer.weight
    with (
        pytest.raises(InterruptedError),
        torch.no_grad(),
        attach(Network(layer=layer), {"a": branch_for(layer)}, TARGETS),
    ):
        layer(torch.randn(40, 6))
    assert layer.weight is own


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.to(torch.float64),
        lambda layer: setattr(layer, "weight_function", [lambda weight: weight]),
        lambda layer: setattr(layer, "padding_mode", "circular"),
    ],
    ids=["another dtype", "weight function", "padding"],
)
def test_weights_that_nothing_can_be_added_to_stay_as_they_are(change):
    class Casting(nn.Conv2d):
        def forward(self, x):
            return super().forward(x.to(self.weight.dtype)).float()

    layer, seen = Casting(6, 8, 1), []
    change(layer)
    b = branch_for(nn.Conv2d(6, 8, 1))
    x = torch.randn(2, 6, 16, 16)
    plain = layer(x).detach()
    with torch.no_grad(), attach(Network(layer=layer), {"a": b}, TARGETS):
        at_call(layer, seen)
        result = layer(x)
    assert seen == [layer.weight]
    torch.testing.assert_close(result, plain + b(x, layer).detach())


def test_last_layer_gives_its_branch_alone():
    layer, x = nn.Linear(6, 8), torch.randn(2, 6)
    b = branch_for(layer)
    with torch.no_grad(), attach(layer, {"a": b}, {"a": LoraTarget("")}, "a"):
        torch.testing.assert_close(layer(x), b(x, layer))


def test_layers_called_with_keywords_get_their_branch():
    layer, x = nn.Linear(6, 8), torch.randn(2, 6)
    b = branch_for(layer)
    with torch.no_grad(), attach(layer, {"a": b}, {"a": LoraTarget("")}, "a"):
        assert torch.equal(layer(input=x), layer(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16])
def test_branch_is_computed_in_the_inputs_dtype(dtype, parameters):
    layer = nn.Linear(6, 8)
    b = branch_for(layer).to(parameters)
    x = torch.randn(4, 6).to(dtype)
    exact = x.double() @ b.down.double().T @ b.up.double().T * 1.5
    got = b(x, layer)
    assert got.dtype == dtype
    assert ((got - exact).norm() / exact.norm()).item() < 4 * torch.finfo(dtype).eps + 1e-7


def test_a_compiled_network_sees_the_branches_and_forgets_them():
    layer, x = nn.Sequential(nn.Linear(6, 8)), torch.randn(2, 6)
    b = branch_for(layer[0])
    plain = layer(x)
    compiled = torch.compile(copy.deepcopy(layer), backend="eager")
    in_place = copy.deepcopy(layer)
    in_place.compile(backend="eager")
    for network in (compiled, in_place):
        network(x)
        with torch.no_grad(), attach(network, {"a": b}, {"a": LoraTarget("0")}, "a"):
            torch.testing.assert_close(network(x), b(x, layer[0]))
        assert torch.equal(network(x), plain)


def test_misfit_names_got_and_expected_shapes():
    problem = misfit(branch_for(nn.Linear(6, 8)), nn.Linear(7, 8), LoraTarget("layer"))
    assert "got A (4, 6) B (8, 4), expected A (4, 7) B (8, 4)" in problem
    problem = misfit(branch_for(nn.Linear(6, 8)), nn.LayerNorm(6), LoraTarget("layer"))
    assert "LayerNorm" in problem
    problem = misfit(branch_for(nn.Linear(6, 8)), nn.Linear(6, 9), LoraTarget("layer", 4, 8))
    assert "exceed" in problem
