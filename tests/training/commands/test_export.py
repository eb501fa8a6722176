"""An adapter exported to one file: nothing lost but what dtype and rank take, and that is told."""

import copy

import numpy as np
import pytest
import torch

from hypernoise.hypernoise_core.adapter import load_adapter, load_generator_lora, save_adapter
from hypernoise.hypernoise_core.errors import AdapterError
from hypernoise.hypernoise_core.generator_lora import (
    GeneratorLora,
    save_generator_lora,
)
from hypernoise.hypernoise_core.lora_branch import LoraBranch
from hypernoise.tests.core.conftest import build_tiny
from hypernoise.training.commands.export import DTYPES, export_adapter, reduce_rank, weight_error

OWN_RANK, RANK = 8, 3


@pytest.fixture(scope="module", params=["sana_sprint", "flux", "sd_turbo"])
def tiny(request):
    return build_tiny(request.param)


@pytest.fixture(scope="module")
def tiny_sana():
    return build_tiny("sana_sprint")


def hypernetwork_of(tiny):
    """With depthwise convolutions where the network has them, and a layer of a lower rank."""
    f = tiny.hypernetwork(OWN_RANK, adapt_depthwise=True)
    branch = f.branches[f.layer_names[1]]
    branches = f.branches | {
        f.layer_names[1]: LoraBranch(branch.down.data[:2], branch.up.data[:, :2], 5.0)
    }
    return type(f)(branches, f.metadata)


def change(branch: LoraBranch) -> np.ndarray:
    """W as a matrix, written out."""
    down = branch.down.detach().double().flatten(1).numpy()
    up = branch.up.detach().double().flatten(1).numpy()
    return up @ down * branch.alpha / branch.rank


def optimal_error(branch: LoraBranch, rank: int) -> tuple[float, float]:
    """Norm of the singular values that a matrix of that rank cannot have, and of all."""
    values = np.linalg.svd(change(branch), compute_uv=False)
    return float(np.linalg.norm(values[rank:])), float(np.linalg.norm(values))


def f_of(f, tiny):
    with torch.no_grad():
        return f.float()(tiny.network, tiny.noise, tiny.conditioning)


def relative(got, expected) -> float:
    return ((got - expected).norm() / expected.norm()).item()


def test_the_reported_errors_are_those_of_the_optimal_truncation(tiny, tmp_path):
    f = hypernetwork_of(tiny)
    source = save_adapter(f, tmp_path / "f.safetensors")
    report = export_adapter(source, tmp_path / "small.safetensors", dtype="float32", rank=RANK)
    expected = {name: optimal_error(branch, RANK) for name, branch in f.branches.items()}
    for name, (error, norm) in expected.items():
        assert report.layer_errors[name] == pytest.approx(error / norm, rel=1e-5, abs=1e-6)
    errors, norms = np.array(list(expected.values())).T
    whole = np.linalg.norm(errors) / np.linalg.norm(norms)
    assert 0.1 < whole < 0.9
    assert report.error == pytest.approx(whole, rel=1e-5)


def test_the_file_differs_from_the_source_by_the_reported_error(tiny, tmp_path):
    f = hypernetwork_of(tiny)
    save_adapter(f, tmp_path / "f.safetensors")
    report = export_adapter(tmp_path / "f.safetensors", tmp_path / "small.safetensors", rank=RANK)
    small = load_adapter(tmp_path / "small.safetensors")
    differences = [
        np.linalg.norm(change(small.branches[n]) - change(f.branches[n])) for n in f.branches
    ]
    whole = np.linalg.norm([np.linalg.norm(change(b)) for b in f.branches.values()])
    assert report.error == pytest.approx(np.linalg.norm(differences) / whole, rel=1e-6)


def test_ranks_and_scales_of_the_reduced_file(tiny, tmp_path):
    f = hypernetwork_of(tiny)
    save_adapter(f, tmp_path / "f.safetensors")
    export_adapter(
        tmp_path / "f.safetensors", tmp_path / "small.safetensors", dtype="float32", rank=RANK
    )
    small = load_adapter(tmp_path / "small.safetensors")
    lower = f.layer_names[1]
    assert {name: b.rank for name, b in small.branches.items() if b.rank != RANK} == {lower: 2}
    assert torch.equal(small.branches[lower].down, f.branches[lower].down)
    for name, branch in small.branches.items():
        assert branch.scale == pytest.approx(f.branches[name].scale)
    assert (small.metadata.rank, small.metadata.alpha) == (RANK, 2.0 * RANK)
    assert small.metadata.family == f.metadata.family


def test_singular_values_are_shared_evenly(tiny_sana):
    branch = reduce_rank(tiny_sana.hypernetwork(OWN_RANK), RANK).branches["proj_out"]
    torch.testing.assert_close(branch.up.norm(dim=0), branch.down.norm(dim=1))


def test_the_own_rank_loses_nothing(tiny, tmp_path):
    f = hypernetwork_of(tiny)
    source = save_adapter(f, tmp_path / "f.safetensors")
    report = export_adapter(
        source, tmp_path / "same.safetensors", dtype="float32", rank=f.metadata.rank
    )
    assert report.error < 1e-6
    exported = load_adapter(tmp_path / "same.safetensors")
    assert relative(f_of(exported, tiny), f_of(f, tiny)) < 1e-6


def test_a_rank_that_holds_all_singular_values_loses_nothing(tiny):
    """Branches whose true rank is below their own."""
    f = tiny.hypernetwork(OWN_RANK)
    with torch.no_grad():
        for branch in f.branches.values():
            branch.up[:, RANK:] = 0
    reduced = reduce_rank(f, RANK)
    assert weight_error(f.branches, reduced.branches) < 1e-6
    assert relative(f_of(reduced, tiny), f_of(f, tiny)) < 1e-4


def test_a_rank_above_a_layer_s_size_is_filled_with_zeros(tiny_sana):
    f = tiny_sana.hypernetwork(40)
    reduced = reduce_rank(f, 30)  # the latents have 4 channels
    assert {branch.rank for branch in reduced.branches.values()} == {30}
    assert (
        weight_error(
            {"a": f.branches["patch_embed.proj"]}, {"a": reduced.branches["patch_embed.proj"]}
        )
        < 1e-6
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_f_stays_within_the_dtype_s_rounding(tiny, tmp_path, dtype):
    f = hypernetwork_of(tiny)
    report = export_adapter(
        save_adapter(f, tmp_path / "folder"), tmp_path / "f.safetensors", dtype=dtype
    )
    exported = load_adapter(tmp_path / "f.safetensors")
    assert {p.dtype for p in exported.parameters()} == {DTYPES[dtype]}
    assert exported.metadata == f.metadata
    eps = torch.finfo(DTYPES[dtype]).eps
    assert report.error <= eps
    assert relative(f_of(exported, tiny), f_of(f, tiny)) < 20 * eps
    assert report.sizes == tuple(
        path.stat().st_size
        for path in (tmp_path / "folder" / "adapter_model.safetensors", report.target)
    )


def test_the_reduced_adapter_opens_in_peft(tiny, tmp_path):
    peft = pytest.importorskip("peft")
    source = save_adapter(tiny.hypernetwork(OWN_RANK), tmp_path / "f.safetensors")
    report = export_adapter(source, tmp_path / "small.safetensors", dtype="float32", rank=RANK)
    small = load_adapter(report.target)
    network = copy.deepcopy(tiny.network)
    last = network.get_submodule(tiny.family.last_layer)
    last.weight.data.zero_()
    last.bias.data.zero_()
    opened = peft.PeftModel.from_pretrained(network, save_adapter(small, tmp_path / "folder"))
    with torch.no_grad():
        got = tiny.family.predict(opened.base_model.model, tiny.noise, tiny.conditioning)
    torch.testing.assert_close(got, f_of(small, tiny), rtol=1e-4, atol=1e-4)


def test_grouped_factors_of_peft_are_reduced_as_the_dense_ones_they_stand_for():
    torch.manual_seed(0)
    down, up = torch.randn(6, 4, 3, 3), torch.randn(4, 3, 1, 1)
    grouped = LoraBranch(down, up, 9.0)
    dense = LoraBranch(down, torch.block_diag(*up[..., 0, 0].chunk(2))[..., None, None], 9.0)
    assert weight_error({"a": grouped}, {"a": dense}) < 1e-12
    layer = torch.nn.Conv2d(4, 4, 3, padding=1, groups=2)
    features = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(grouped(features, layer), dense(features, layer))


def test_a_lora_on_the_generator_is_exported_as_one(tiny, tmp_path):
    lora = GeneratorLora.initialise(
        tiny.network, tiny.family, rank=OWN_RANK, alpha=5, generator=torch.manual_seed(0)
    )
    for branch in lora.branches.values():
        branch.up.data.normal_(std=0.1)
    source = save_generator_lora(lora, tmp_path / "lora.safetensors")
    report = export_adapter(source, tmp_path / "small.safetensors", dtype="float32", rank=RANK)
    small = load_generator_lora(tmp_path / "small.safetensors")
    assert small.metadata.rank == RANK
    assert {branch.scale for branch in small.branches.values()} == {1.0}
    for name, branch in lora.branches.items():
        error, norm = optimal_error(branch, RANK)
        assert report.layer_errors[name] == pytest.approx(error / norm, rel=1e-4, abs=1e-6)
        lost = np.linalg.norm(change(small.branches[name]) - change(branch))
        assert lost == pytest.approx(error, rel=1e-4, abs=1e-5)


def test_alpha_is_refused_for_a_lora_whose_weights_hold_the_scale(tiny_sana, tmp_path):
    lora = GeneratorLora.initialise(tiny_sana.network, tiny_sana.family, rank=2, alpha=5)
    source = save_generator_lora(lora, tmp_path / "lora.safetensors")
    with pytest.raises(AdapterError, match="include its scale, but alpha was given"):
        export_adapter(source, tmp_path / "small.safetensors", alpha=5)


@pytest.mark.parametrize("rank", [0, -1, OWN_RANK + 1])
def test_a_rank_that_cannot_be_is_refused(tiny_sana, tmp_path, rank):
    source = save_adapter(tiny_sana.hypernetwork(OWN_RANK), tmp_path / "f.safetensors")
    with pytest.raises(ValueError, match=f"from 1 to {OWN_RANK}, the adapter's rank, not {rank}"):
        export_adapter(source, tmp_path / "small.safetensors", rank=rank)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (1e5, "float16", "proj_out has weights above 65504, too large for torch.float16"),
        (float("nan"), "float32", r"NaN or infinite.*proj_out \(1 of"),
    ],
)
def test_weights_that_the_dtype_cannot_hold_are_refused(tiny_sana, tmp_path, value, dtype, message):
    f = tiny_sana.hypernetwork(OWN_RANK)
    f.branches["proj_out"].up.data[0, 0] = value
    source = save_adapter(f, tmp_path / "f.safetensors")
    with pytest.raises(ValueError, match=message):
        export_adapter(source, tmp_path / "small.safetensors", dtype=dtype)
    assert list(tmp_path.iterdir()) == [source]


def test_bad_targets_sources_and_dtypes_are_named(tiny_sana, tmp_path):
    source = save_adapter(tiny_sana.hypernetwork(OWN_RANK), tmp_path / "f.safetensors")
    before = source.read_bytes()
    with pytest.raises(ValueError, match="is the adapter itself"):
        export_adapter(source, source)
    with pytest.raises(ValueError, match=r"f\.bin: the output file must end in .safetensors"):
        export_adapter(source, tmp_path / "f.bin")
    with pytest.raises(ValueError, match="choose from float16, bfloat16, float32"):
        export_adapter(source, tmp_path / "small.safetensors", dtype="int8")
    with pytest.raises(AdapterError, match="there is no adapter at .*gone"):
        export_adapter(tmp_path / "gone.safetensors", tmp_path / "small.safetensors")
    assert source.read_bytes() == before


def test_the_summary_names_sizes_error_and_the_worst_layer(tiny_sana, tmp_path):
    source = save_adapter(tiny_sana.hypernetwork(OWN_RANK), tmp_path / "f.safetensors")
    report = export_adapter(source, tmp_path / "small.safetensors", rank=RANK)
    text = "\n".join(report.lines())
    worst = max(report.layer_errors, key=report.layer_errors.__getitem__)
    assert f"rank {OWN_RANK}" in text and f"rank {RANK}, float16" in text
    assert f"{report.error:.3g}" in text and f"{report.layer_errors[worst]:.3g}  {worst}" in text
    assert report.sizes[1] < report.sizes[0] / 2
