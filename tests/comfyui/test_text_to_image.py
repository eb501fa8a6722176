"""Text to image through the server, with ComfyUI's stock sampler, prompt, VAE and save nodes."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hypernoise.hypernoise_core.adapter import load_adapter
from hypernoise.hypernoise_core.generate import Generated, generate
from hypernoise.tests.comfyui import stand_ins
from hypernoise.tests.comfyui.conftest import Models
from hypernoise.tests.comfyui.graphs import text_to_image
from hypernoise.tests.comfyui.server import ComfyServer, Refused, Run

SEED = 7
PROMPT = "a red circle left of a blue square"


def latent(server: ComfyServer, run: Run) -> torch.Tensor:
    """The sampler's result in float32."""
    assert run.error is None, run.error
    return load_file(server.file(run, "saved_latent", "latents"))["latent_tensor"]


def image(server: ComfyServer, run: Run) -> np.ndarray:
    """The saved PNG, (H, W, 3) in 0..255."""
    return np.asarray(Image.open(server.file(run, "image", "images")))


@pytest.fixture(scope="module")
def pipeline(models: Models):
    from diffusers import SanaSprintPipeline

    loaded = SanaSprintPipeline.from_pretrained(models.folder_path)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def plain(server: ComfyServer, models: Models) -> Run:
    return server.run(text_to_image(models.folder, seed=SEED))


def expected(pipeline, path=None, *, batch_size: int = 1, strength: float = 1.0) -> Generated:
    """`generate` of the core on the noise that KSampler draws for the seed."""
    shape = (batch_size, pipeline.transformer.config.in_channels, 8, 8)
    return generate(
        pipeline,
        [PROMPT] * batch_size,
        load_adapter(path) if path else None,
        seeds=[SEED] * batch_size,
        strength=strength,
        noise=torch.randn(shape, generator=torch.Generator().manual_seed(SEED)),
    )


def assert_same(server: ComfyServer, run: Run, reference: Generated, pipeline) -> None:
    """Latents within 1e-3, the first image within 1/255 and rounding."""
    # In ComfyUI's graph latents are those of the VAE, without the model's scale.
    found = latent(server, run) * pipeline.vae.config.scaling_factor
    assert (found - reference.latents).norm() / reference.latents.norm() < 1e-3
    pixels = reference.images[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(image(server, run) - pixels).max() <= 1.5


def test_plain_model_equals_the_core(server, models, pipeline, plain):
    assert_same(server, plain, expected(pipeline), pipeline)


def test_strength_one_equals_the_core(server, models, pipeline, plain, adapter_name):
    graph = text_to_image(models.folder, seed=SEED, hypernetworks=((adapter_name, 1.0),))
    run = server.run(graph)
    assert_same(server, run, expected(pipeline, models.adapter(adapter_name)), pipeline)
    change = latent(server, run) - latent(server, plain)
    assert change.norm() / latent(server, plain).norm() > 0.05  # it does something


def test_batch_and_strength_equal_the_core(server, models, pipeline):
    graph = text_to_image(
        models.folder, seed=SEED, batch_size=3, hypernetworks=((stand_ins.FILE, 0.5),)
    )
    reference = expected(pipeline, models.adapter(stand_ins.FILE), batch_size=3, strength=0.5)
    assert_same(server, server.run(graph), reference, pipeline)


def test_strength_zero_is_the_graph_without_the_node_bit_for_bit(server, models, plain):
    """Also after other strengths ran: the model's weights are what they were."""
    for strength in (1.0, -2.0, 0.0):
        graph = text_to_image(models.folder, seed=SEED, hypernetworks=((stand_ins.FILE, strength),))
        run = server.run(graph)
    assert torch.equal(latent(server, run), latent(server, plain))
    assert np.array_equal(image(server, run), image(server, plain))


def test_a_changed_strength_runs_only_what_hangs_on_it(server, models):
    def graph(strength: float) -> dict:
        return text_to_image(models.folder, seed=21, hypernetworks=((stand_ins.OTHER, strength),))

    server.run(graph(0.7))
    again, changed = server.run(graph(0.7)), server.run(graph(0.8))
    assert again.executed == []
    assert set(changed.executed) == {"apply0", "sampler", "decode", "image", "saved_latent"}
    assert {"model", "positive", "negative", "latent", "load0"} <= set(changed.cached)


def test_a_replaced_hypernetwork_file_is_read_again(server, models):
    path = models.adapter("replaced.safetensors")
    path.write_bytes(models.adapter(stand_ins.FILE).read_bytes())
    graph = text_to_image(models.folder, seed=SEED, hypernetworks=((path.name, 1.0),))
    before = latent(server, server.run(graph))
    path.write_bytes(models.adapter(stand_ins.OTHER).read_bytes())
    run = server.run(graph)
    assert {"load0", "apply0", "sampler"} <= set(run.executed)
    assert not torch.equal(latent(server, run), before)


def test_several_steps_start_from_the_same_modulated_noise(server, models, plain):
    pairs = ((stand_ins.FILE, 1.0),)
    runs = [
        server.run(text_to_image(models.folder, seed=SEED, steps=4, hypernetworks=p))
        for p in ((), pairs)
    ]
    first, second = (latent(server, run) for run in runs)
    assert torch.isfinite(second).all() and not torch.equal(first, second)


def below_full_noise(models: Models, hypernetworks: tuple) -> dict:
    return text_to_image(models.folder, seed=SEED, denoise=0.5, hypernetworks=hypernetworks)


def test_below_full_noise_an_image_s_noise_is_left_alone_and_the_log_says_so(server, models):
    runs = []
    for hypernetworks in ((), ((stand_ins.FILE, 1.0),)):
        graph = below_full_noise(models, hypernetworks)
        graph["grey"] = {
            "class_type": "EmptyImage",
            "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0x808080},
        }
        graph["latent"] = {
            "class_type": "VAEEncode",
            "inputs": {"pixels": ["grey", 0], "vae": ["model", 2]},
        }
        runs.append(server.run(graph))
    assert torch.equal(latent(server, runs[0]), latent(server, runs[1]))
    assert f"{stand_ins.FILE} is not used: sampling starts at sigma 0.5" in server.log()


def test_below_full_noise_an_empty_latent_s_noise_is_modulated_and_the_log_says_so(server, models):
    plain, changed = (
        latent(server, server.run(below_full_noise(models, hypernetworks)))
        for hypernetworks in ((), ((stand_ins.OTHER, 1.0),))
    )
    assert (changed - plain).norm() / plain.norm() > 0.05
    assert f"{stand_ins.OTHER} is used in full: sampling starts at sigma 0.5" in server.log()


def test_a_hypernetwork_of_another_family_is_refused_with_its_name(server, models):
    run = server.run(text_to_image(models.folder, hypernetworks=((stand_ins.FLUX, 1.0),)))
    assert run.error["node_id"] == "apply0"
    assert "flux" in run.error["exception_message"]


def test_a_missing_file_is_refused_before_anything_runs(server, models):
    with pytest.raises(Refused, match=r"nowhere\.safetensors"):
        server.run(text_to_image(models.folder, hypernetworks=(("nowhere.safetensors", 1.0),)))
