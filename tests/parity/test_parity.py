"""Agreement with the reference implementation's recorded outputs, in float32 on the CPU."""

import re

import pytest
import torch
from torch import Tensor

from hypernoise.hypernoise_core.families.flux import pack_latents
from hypernoise.hypernoise_core.generate import generate

pytestmark = pytest.mark.parity

TOLERANCE = 1e-5
GENERATED = re.compile(r"(image|latent)_(base|hypernoise)(?:_(\d+)step)?")
INPUTS = {"noise", "noise_packed"}
NETWORK_OUTPUTS = {"delta", "delta_packed", "base_velocity", "base_velocity_packed"}


def assert_agrees(name: str, got: Tensor, expected: Tensor) -> None:
    error = ((got - expected).norm() / expected.norm()).item()
    print(f"{name}: relative L2 {error:.1e}")
    assert got.shape == expected.shape
    assert error <= TOLERANCE, f"{name}: relative L2 {error:.2e}"


def test_every_recorded_tensor_is_compared(case):
    known = INPUTS | NETWORK_OUTPUTS | case.conditioning.keys()
    assert [k for k in case.tensors if k not in known and not GENERATED.fullmatch(k)] == []


@torch.no_grad()
def test_hypernetwork_output(case):
    delta = case.hypernetwork(case.network, case.noise, case.conditioning)
    assert_agrees("delta", delta, case.tensors["delta"])
    if "delta_packed" in case.tensors:
        assert_agrees("delta_packed", pack_latents(delta), case.tensors["delta_packed"])


@torch.no_grad()
def test_unadapted_network_output(case):
    recorded = NETWORK_OUTPUTS & case.tensors.keys() - {"delta", "delta_packed"}
    if not recorded:
        pytest.skip("the case records no output of the unadapted network")
    with torch.no_grad():
        case.hypernetwork(case.network, case.noise, case.conditioning)  # must leave no trace
    velocity = case.family.predict(case.network, case.noise, case.conditioning)
    for name in recorded:
        got = pack_latents(velocity) if name.endswith("_packed") else velocity
        assert_agrees(name, got, case.tensors[name])


def test_packing(case):
    if "noise_packed" not in case.tensors:
        pytest.skip("the family packs no latents")
    assert torch.equal(pack_latents(case.noise), case.tensors["noise_packed"])


def test_latents_and_images(case):
    recorded = [match for name in case.tensors if (match := GENERATED.fullmatch(name))]
    height, width = case.image_size
    assert recorded
    for method, steps in sorted({(match[2], int(match[3] or 1)) for match in recorded}):
        made = generate(
            case.pipeline,
            [""] * len(case.noise),
            case.hypernetwork if method == "hypernoise" else None,
            seeds=range(len(case.noise)),
            steps=steps,
            height=height,
            width=width,
            conditioning=case.conditioning,
            noise=case.noise,
        )
        for match in recorded:
            if (match[2], int(match[3] or 1)) == (method, steps):
                got = made.images if match[1] == "image" else made.latents
                assert_agrees(match[0], got, case.tensors[match[0]])
