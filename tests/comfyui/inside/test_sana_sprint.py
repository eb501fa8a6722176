"""SANA-Sprint as MODEL, CLIP and VAE against diffusers' own pipeline."""

import logging

import pytest
import torch
from diffusers import SanaSprintPipeline


@pytest.fixture(scope="module")
def pipeline(models) -> SanaSprintPipeline:
    return SanaSprintPipeline.from_pretrained(models.folder_path)


@pytest.fixture(scope="module")
def instruction() -> list[str]:
    import inspect

    parameters = inspect.signature(SanaSprintPipeline.__call__).parameters
    return parameters["complex_human_instruction"].default


@pytest.mark.parametrize("text", ["three green triangles", "A (red:1.2) Circle, [blue] ", ""])
@pytest.mark.parametrize("use_instruction", [True, False])
def test_prompts_are_encoded_as_written(
    comfy, models, pipeline, instruction, text, use_instruction
):
    _, clip, _ = comfy.run(
        "HyperNoise_LoadSanaSprint",
        folder=models.folder,
        instruction=use_instruction,
        precision="auto",
    )
    [[embeddings, extra]] = comfy.nodes.CLIPTextEncode().encode(clip, text)[0]
    expected, mask = pipeline.encode_prompt(
        text, complex_human_instruction=instruction if use_instruction else None
    )
    used = mask[0].bool()  # the rest is padding, to which the network gives no weight
    assert torch.equal(embeddings, expected[:, used])
    assert extra["attention_mask"].shape == (1, used.sum()) and extra["attention_mask"].all()


@pytest.mark.parametrize("sampler", ["euler", "lcm"])
@pytest.mark.parametrize("scheduler", ["simple", "sgm_uniform", "normal"])
def test_one_step_equals_the_pipeline(comfy, loaded, pipeline, sampler, scheduler):
    found = comfy.nodes.KSampler().sample(
        loaded.model, 3, 1, 1.0, sampler, scheduler, loaded.prompt, loaded.prompt, loaded.latent
    )[0]["samples"]
    channels = pipeline.transformer.config.in_channels
    noise = torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(3))
    expected = pipeline(
        "three green triangles",
        num_images_per_prompt=2,
        num_inference_steps=1,
        intermediate_timesteps=None,
        latents=noise,
        height=64,
        width=64,
        use_resolution_binning=False,
        output_type="latent",
    ).images
    expected = expected / pipeline.vae.config.scaling_factor
    assert (found - expected).norm() / expected.norm() < 1e-4


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_lcm_at_our_sigmas_equals_the_pipeline_with_the_same_noises(comfy, loaded, pipeline, steps):
    from comfy.samplers import ksampler
    from comfy_extras.nodes_custom_sampler import SamplerCustom

    generator = torch.Generator().manual_seed(8)
    sampler = ksampler("lcm", {"noise_sampler": lambda *_: drawn(generator)})
    channels = pipeline.transformer.config.in_channels

    def drawn(source: torch.Generator) -> torch.Tensor:
        return torch.randn(2, channels, 8, 8, generator=source)

    sigmas = comfy.run(
        "HyperNoise_SanaSprintSigmas",
        steps=steps,
        max_timestep=1.57080,
        intermediate_timestep=1.3,
    )[0]
    found = SamplerCustom.execute(
        loaded.model, True, 3, 1.0, loaded.prompt, loaded.prompt, sampler, sigmas, loaded.latent
    ).args[0]["samples"]
    expected = pipeline(
        ["three green triangles"] * 2,
        num_inference_steps=steps,
        intermediate_timesteps=1.3 if steps == 2 else None,
        latents=drawn(torch.Generator().manual_seed(3)),
        generator=torch.Generator().manual_seed(8),
        height=64,
        width=64,
        use_resolution_binning=False,
        output_type="latent",
    ).images
    expected = expected / pipeline.vae.config.scaling_factor
    assert (found - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("second", [1.2, 1.0])
def test_a_second_step_that_is_not_below_the_first_is_refused(comfy, second):
    with pytest.raises(ValueError, match="intermediate_timestep"):
        comfy.run(
            "HyperNoise_SanaSprintSigmas", steps=2, max_timestep=1.0, intermediate_timestep=second
        )


def test_decode_and_encode_equal_diffusers(comfy, loaded, pipeline):
    channels = pipeline.vae.config.latent_channels
    latents = torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    images = comfy.nodes.VAEDecode().decode(loaded.vae, {"samples": latents})[0]
    expected = pipeline.vae.decode(latents, return_dict=False)[0].div(2).add(0.5).clamp(0, 1)
    torch.testing.assert_close(images, expected.permute(0, 2, 3, 1))
    back = comfy.nodes.VAEEncode().encode(loaded.vae, images)[0]["samples"]
    pixels = images.permute(0, 3, 1, 2) * 2 - 1
    torch.testing.assert_close(back, pipeline.vae.encode(pixels, return_dict=False)[0])


def test_tiled_decode_of_an_image_larger_than_a_tile(comfy, loaded):
    latents = torch.zeros(1, loaded.vae.latent_channels, 24, 24)
    images = comfy.nodes.VAEDecodeTiled().decode(loaded.vae, {"samples": latents}, 128, 32)[0]
    assert images.shape == (1, 192, 192, 3)


def test_loading_leaves_no_log_line_about_missing_weights_and_others_keep_theirs(
    comfy, models, caplog
):
    comfy.run(
        "HyperNoise_LoadSanaSprint", folder=models.folder, instruction=True, precision="float32"
    )
    assert "No VAE weights" not in caplog.text
    line = "No VAE weights detected, VAE not initalized."  # as ComfyUI has it for a VAE of its own
    logging.getLogger().warning(line)
    assert line in caplog.text


def test_bfloat16(comfy, models, loaded):
    model, clip, vae = comfy.run(
        "HyperNoise_LoadSanaSprint", folder=models.folder, instruction=True, precision="bfloat16"
    )
    prompt = comfy.nodes.CLIPTextEncode().encode(clip, "three green triangles")[0]
    found = comfy.sample(model, prompt, loaded.latent)
    exact = comfy.sample(loaded.model, loaded.prompt, loaded.latent)
    parts = (model.model.diffusion_model, clip.patcher.model.text_encoder, vae.first_stage_model)
    for part in parts:
        assert {weight.dtype for weight in part.parameters()} == {torch.bfloat16}
    assert 0 < (found - exact).norm() / exact.norm() < 0.1
    assert comfy.nodes.VAEDecode().decode(vae, {"samples": found})[0].shape == (2, 64, 64, 3)


def test_a_prompt_of_another_text_encoder_is_refused(comfy, loaded):
    foreign = [[torch.zeros(1, 77, 768), {}]]
    with pytest.raises(ValueError, match="encoded with 768 channels"):
        comfy.sample(loaded.model, foreign, loaded.latent)


def test_a_joined_prompt_is_refused(comfy, loaded):
    joined = comfy.nodes.ConditioningConcat().concat(loaded.prompt, loaded.prompt)[0]
    with pytest.raises(ValueError, match="Conditioning \\(Combine\\)"):
        comfy.sample(loaded.model, joined, loaded.latent)


def test_guidance_is_what_the_stock_node_says_and_4_5_without_it(comfy, loaded):
    from comfy_extras.nodes_flux import FluxGuidance

    trained, other = (
        comfy.sample(loaded.model, FluxGuidance.execute(loaded.prompt, guidance).args[0], latent)
        for latent in [loaded.latent]
        for guidance in (4.5, 9.0)
    )
    assert torch.equal(trained, comfy.sample(loaded.model, loaded.prompt, loaded.latent))
    assert (other - trained).norm() / trained.norm() > 1e-3


def test_the_padding_of_a_prompt_is_not_read(comfy, loaded):
    """A prompt has it where it is joined with a longer one for a batch."""
    ((embeddings, extra),) = loaded.prompt
    mask, more = extra["attention_mask"], torch.ones(1, 3, embeddings.shape[-1])
    padded = torch.cat([embeddings, more], dim=1)
    masks = {"attention_mask": torch.cat([mask, torch.zeros(1, 3).to(mask)], dim=1)}
    found = comfy.sample(loaded.model, [[padded, {**extra, **masks}]], loaded.latent)
    expected = comfy.sample(loaded.model, loaded.prompt, loaded.latent)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_disabled_guidance_is_the_trained_one(comfy, loaded):
    from comfy_extras.nodes_flux import FluxDisableGuidance, FluxGuidance

    disabled = FluxDisableGuidance.execute(FluxGuidance.execute(loaded.prompt, 9.0).args[0]).args[0]
    assert disabled[0][1]["guidance"] is None
    expected = comfy.sample(loaded.model, loaded.prompt, loaded.latent)
    assert torch.equal(comfy.sample(loaded.model, disabled, loaded.latent), expected)


def test_missing_diffusers_is_named_with_the_command(comfy, monkeypatch):
    import sys

    library = comfy.ours("nodes.sana_sprint.diffusers_library")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match='-m pip install "diffusers>=0.33" hugg.*==\\d'):
        library.diffusers()


@pytest.mark.parametrize(
    ("size", "expected"), [((1920, 1080), (1344, 768)), ((64, 64), (1024, 1024))]
)
def test_resolution_bins_are_the_pipeline_s(comfy, size, expected):
    width, height = size
    for binned, (w, h) in ((True, expected), (False, (width // 32 * 32, height // 32 * 32))):
        latent = comfy.run(
            "HyperNoise_EmptySanaLatent",
            width=width,
            height=height,
            batch_size=2,
            resolution_bin=binned,
        )[0]["samples"]
        assert latent.shape == (2, 32, h // 32, w // 32)


def test_each_part_is_on_its_device_as_a_whole_or_not_at_all(comfy, loaded, monkeypatch):
    """Their layers are not ComfyUI's own: those cannot fetch their weights when they run."""
    import comfy.model_management as management

    parts = (loaded.model, loaded.clip.patcher, loaded.vae.patcher, loaded.hypernoise.patcher)
    for patcher in parts:
        management.unload_all_models()
        patcher.partially_load(patcher.load_device, extra_memory=1)
        assert patcher.loaded_size() == patcher.model_size()
        patcher.detach()
    management.load_models_gpu(list(parts))
    nothing = {True: (0, 0), False: 0}
    monkeypatch.setattr(
        management, "get_free_memory", lambda device, torch_free_too=False: nothing[torch_free_too]
    )
    # Each is asked for one byte.
    unloaded = management.free_memory(1, loaded.model.load_device)
    assert {entry.model.model for entry in unloaded} >= {patcher.model for patcher in parts}
    assert [patcher.loaded_size() for patcher in parts] == [0, 0, 0, 0]
