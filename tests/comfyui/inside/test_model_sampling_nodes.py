"""Core's ModelSampling nodes: the hypernetwork's pass stays what it was trained as."""

import itertools
from typing import Any

import pytest
import torch

FAMILIES = ("sana_sprint", "flux", "sd_turbo")


def nodes_and_settings() -> list[tuple[type, dict[str, Any]]]:
    """Every ModelSampling node of core, with every choice of its combos and switches."""
    from comfy_extras import nodes_lt, nodes_model_advanced

    known = vars(nodes_model_advanced)["NODE_CLASS_MAPPINGS"].values()
    nodes = [node for node in known if node.__name__.startswith(("ModelSampling", "ModelNoise"))]
    found = []
    for node in [*nodes, nodes_lt.ModelSamplingLTXV]:
        inputs = {name: _values(*spec) for name, spec in node.INPUT_TYPES()["required"].items()}
        del inputs["model"]
        found += [
            (node, dict(zip(inputs, each, strict=True)))
            for each in itertools.product(*inputs.values())
        ]
    return found


def _values(kind: Any, options: dict | None = None) -> list:
    if isinstance(kind, (list, tuple)):
        return list(kind)
    return [False, True] if kind == "BOOLEAN" else [(options or {}).get("default")]


def patched(node: type, model: Any, settings: dict[str, Any]) -> Any:
    result = getattr(node(), node.FUNCTION)(model, **settings)
    return (result.args if hasattr(result, "args") else result)[0]


@pytest.fixture(params=FAMILIES)
def setting(request, loaded, stand_in) -> tuple[Any, Any, list, torch.Tensor]:
    """MODEL, HYPERNOISE, CONDITIONING and a noise (2, C, H, W) of a family."""
    if request.param == "sana_sprint":
        channels = loaded.model.model.latent_format.latent_channels
        return loaded.model, loaded.hypernoise, loaded.prompt, torch.randn(2, channels, 8, 8)
    built = stand_in(request.param, batch=2)
    return built.model, built.hypernoise, built.positive, built.noise


def test_the_change_is_the_same_behind_every_node(comfy, setting, caplog):
    ours = comfy.ours("nodes.comfy_model")
    model, hypernoise, positive, noise = setting

    def change(source: Any) -> torch.Tensor:
        hypernoise.cache._entries.clear()
        return ours.modulated_noise(ours.apply(source, hypernoise, 1.0), positive, noise, 0) - noise

    expected = change(model)
    assert expected.abs().mean() > 1e-2
    cases = nodes_and_settings()
    assert len({node for node, _ in cases}) >= 8 and len(cases) >= 23
    sampling = model.model.model_sampling
    for node, settings in cases:
        if node.__name__ == "ModelNoiseScale" and not hasattr(sampling, "multiplier"):
            continue  # it is made for models like SANA
        if "playground" in str(settings.get("sampling")) and noise.shape[1] != 4:
            continue  # it brings a latent format for four channels
        caplog.clear()
        found, case = change(patched(node, model, settings)), f"{node.__name__} {settings}"
        if settings.get("sampling") == "img_to_img_flow":  # samplers start without noise
            assert torch.count_nonzero(found) == 0, case
            assert "the model starts from the latent alone" in caplog.text
        else:
            error = (found - expected).norm() / expected.norm()
            assert error < 1e-5, f"{case}: {error}"
            assert "HyperNoise" not in caplog.text, case
    change(model)
    assert model.model.model_sampling is sampling


def test_the_sampler_samples_as_the_node_says(comfy, loaded):
    """After the pass the node's sampling is back: modulated is what the plain model makes of it."""
    from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM

    ours = comfy.ours("nodes.comfy_model")
    settings = {"sampling": "v_prediction", "sigma_max": 120.0, "sigma_min": 0.002}
    model = patched(ModelSamplingContinuousEDM, loaded.model, settings)
    modulated = ours.apply(model, loaded.hypernoise, 1.0)
    found = comfy.sample(modulated, loaded.prompt, loaded.latent, steps=2)

    noise = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(3))
    better = ours.modulated_noise(modulated, loaded.prompt, noise, 0)
    expected = _sampled(model, loaded.prompt, better)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, _sampled(model, loaded.prompt, noise), atol=1e-2)


def _sampled(model: Any, prompt: list, noise: torch.Tensor) -> torch.Tensor:
    """As `Comfy.sample` with two steps, from a given noise."""
    import comfy.sample

    return comfy.sample.sample(
        model, noise, 2, 1.0, "euler", "simple", prompt, prompt, torch.zeros_like(noise), seed=3
    )
