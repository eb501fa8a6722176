"""Full-size models without weights, and the memory that a run needs."""

import dataclasses
import json
import shutil

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from hypernoise.hypernoise_core.adapter import save_adapter
from hypernoise.hypernoise_core.errors import LibraryFolderError
from hypernoise.hypernoise_core.families import FAMILIES, get_family
from hypernoise.hypernoise_core.generate import encode_prompts
from hypernoise.hypernoise_core.hypernetwork import NoiseHypernetwork
from hypernoise.hypernoise_core.rewards import REWARDS, Ensemble, get_reward, load_rewards
from hypernoise.hypernoise_core.rewards.images import Preprocess
from hypernoise.hypernoise_core.rewards.redness import Redness
from hypernoise.tests.core.conftest import build_tiny
from hypernoise.tests.rewards.test_full_size import UNUSED, published
from hypernoise.training.config import TrainingConfig
from hypernoise.training.embedded_models import EMBEDDED
from hypernoise.training.estimate import (
    OPTIMIZER_COPIES,
    estimate,
    measure_step,
    shapes_as_on_gpus,
)
from hypernoise.training.memory import LiveBytes, checkpoint_activations, save_memory
from hypernoise.training.optimization import make_optimizer
from hypernoise.training.pipelines import load_pipeline
from hypernoise.training.published_models import PUBLISHED, build_on_meta, copy_to_meta
from hypernoise.training.trainer import Trainer, make_adapter

# Older torch gives meta tensors another memory layout than tensors with values, and copies them.
TOLERANCE = 0.02 if torch.__version__ >= (2, 9) else 0.1
NAMES = [family.name for family in FAMILIES]
VAE_PARAMETERS = {"sana": 312_250_275, "flux": 83_819_683, "sd-turbo": 83_653_863}
ADAPTER_PARAMETERS = {"sana": 108_306_432, "flux": 692_731_904, "sd-turbo": 136_500_224}


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def settings(**changes) -> TrainingConfig:
    small = {"model": "tiny-sprint", "lora_rank": 4, "batch_size": 3, "precision": "float32"}
    return TrainingConfig(**{**small, "rewards": {"redness": 1.0}, **changes})


def small_pipeline_estimate(name: str = "sana_sprint", **changes):
    return estimate(settings(image_size=16, **changes), build_tiny(name).pipeline)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_the_published_number_of_parameters(name):
    model = PUBLISHED[name]
    family = get_family(model.family)
    pipeline = build_on_meta(name, torch.bfloat16)
    network = family.network(pipeline)
    assert count(network) == model.parameters
    assert count(pipeline.vae) == VAE_PARAMETERS[name]
    for module in (network, pipeline.vae):
        assert {p.device.type for p in module.parameters()} == {"meta"}
        assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
        assert not any(p.requires_grad for p in module.parameters())
    assert model.image_size % family.image_multiple(pipeline) == 0


def test_sana_is_the_published_architecture():
    assert round(PUBLISHED["sana"].parameters / 1e9, 1) == 0.6
    pipeline = build_on_meta("sana")
    assert get_family("sana_sprint").latent_shape(pipeline, 1024, 1024) == (32, 32, 32)
    blocks = pipeline.transformer.transformer_blocks
    assert len(blocks) == 28
    assert blocks[0].attn1.to_q.in_features == 1152


@pytest.mark.parametrize(
    ("name", "adapt_depthwise", "expected"),
    [*((n, False, e) for n, e in ADAPTER_PARAMETERS.items()), ("sana", True, 314_744_832)],
)
def test_an_adapter_of_rank_128_has_as_many_parameters(name, adapt_depthwise, expected):
    family = get_family(PUBLISHED[name].family)
    network = family.network(build_on_meta(name))
    options = {"rank": 128, "alpha": 128, "adapt_depthwise": adapt_depthwise}
    with torch.device("meta"):
        assert count(NoiseHypernetwork.initialise(network, family, **options)) == expected


def test_an_unknown_model_is_refused_with_the_known_names():
    with pytest.raises(ValueError, match="'sdxl'.*sana, flux, sd-turbo"):
        build_on_meta("sdxl")


def test_a_folder_gives_the_shapes_of_its_pipeline():
    pipeline, shapes = load_pipeline("tiny-sprint"), build_on_meta(EMBEDDED["tiny-sprint"])
    for part in ("transformer", "vae"):
        real, meta = getattr(pipeline, part).state_dict(), getattr(shapes, part).state_dict()
        assert {n: t.shape for n, t in meta.items()} == {n: t.shape for n, t in real.items()}
    assert type(shapes.scheduler) is type(pipeline.scheduler)


def test_a_folder_without_a_part_is_refused_with_its_path(tmp_path):
    folder = shutil.copytree(EMBEDDED["tiny-sprint"], tmp_path / "model")
    (folder / "vae" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="vae"):
        build_on_meta(folder)


@pytest.mark.parametrize("with_weights", [True, False])
def test_the_shapes_of_a_folder_are_no_larger_than_a_network_is(tmp_path, with_weights):
    weights = None if with_weights else shutil.ignore_patterns("*.safetensors")
    folder = shutil.copytree(EMBEDDED["tiny-sprint"], tmp_path / "model", ignore=weights)
    build_on_meta(folder)
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_layers": 100_000}))
    with pytest.raises(LibraryFolderError, match="model asks for a larger network than"):
        build_on_meta(folder)


def test_the_shapes_of_a_folder_are_of_networks_alone(tmp_path):
    folder = shutil.copytree(EMBEDDED["tiny-sprint"], tmp_path / "model")
    index = folder / "model_index.json"
    parts = json.loads(index.read_text())
    index.write_text(json.dumps(parts | {"transformer": ["diffusers", "SanaSprintPipeline"]}))
    with pytest.raises(LibraryFolderError, match="SanaSprintPipeline as transformer, which is no"):
        build_on_meta(folder)


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_those_of_the_real_model_and_adapter(name):
    tiny = build_tiny(name)
    config = settings(image_size=16)
    result = estimate(config, tiny.pipeline)
    adapter = make_adapter(tiny.network, tiny.family, config, "tiny")
    assert result.network_parameters == count(tiny.network)
    assert result.adapter_parameters == count(adapter)
    assert result.network == 4 * count(tiny.network)
    assert result.vae == 4 * count(tiny.pipeline.vae)
    assert result.adapter == result.gradients == 4 * count(adapter)
    assert {p.device.type for p in tiny.network.parameters()} == {"cpu"}


@pytest.mark.parametrize("train_type", ["noise", "finetune"])
@pytest.mark.parametrize("saving", [None, save_memory, checkpoint_activations])
@pytest.mark.parametrize("name", NAMES)
def test_shapes_alone_take_the_bytes_that_values_take(name, saving, train_type):
    config = settings(image_size=16, train_type=train_type, max_generator_steps=2)
    measured = []
    for device in ("cpu", "meta"):
        tiny = build_tiny(name)
        pipeline = tiny.pipeline
        if device == "meta":
            pipeline = copy_to_meta(pipeline, torch.float32)
        if saving is not None:
            saving(pipeline)
        network = tiny.family.network(pipeline)
        adapter = make_adapter(tiny.network, tiny.family, config, "tiny").to(device)
        adapter.check_fits(network)
        conditioning = {key: tensor.to(device) for key, tensor in tiny.conditioning.items()}
        measured.append(
            measure_step(config, pipeline, adapter, tiny.noise.to(device), conditioning)
        )
    (kept, peak), (kept_on_meta, peak_on_meta) = measured
    assert kept_on_meta == pytest.approx(kept, rel=TOLERANCE)
    assert peak_on_meta == pytest.approx(peak, rel=2 * TOLERANCE)
    assert peak > kept > 0


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_is_what_three_passes_leave(name):
    tiny = build_tiny(name)
    config = settings(image_size=16)
    adapter = make_adapter(tiny.network, tiny.family, config, "tiny")
    with LiveBytes() as live:
        output = adapter(tiny.network, tiny.noise, tiny.conditioning)
        start = (tiny.noise + output).detach().requires_grad_(True)
        latents = tiny.family.predict(tiny.network, start, tiny.conditioning)
        images = tiny.family.decode(tiny.pipeline, latents)
    assert images.requires_grad
    args = (config, tiny.pipeline, adapter, tiny.noise, tiny.conditioning)
    assert measure_step(*args)[0] == pytest.approx(live.now, rel=0.01)


@pytest.mark.parametrize("train_type", ["noise", "finetune"])
@pytest.mark.parametrize("use_checkpoint", [False, True])
def test_a_real_update_takes_what_was_estimated(use_checkpoint, train_type, monkeypatch):
    prompts = ["a red circle", "two blue squares", "a white triangle"]
    pipeline = load_pipeline("tiny-sprint")
    conditioning = encode_prompts(pipeline, prompts)
    tokens = conditioning["prompt_embeds"].shape[1]
    monkeypatch.setattr(get_family("sana_sprint"), "text_tokens", tokens)
    config = settings(use_checkpoint=use_checkpoint, train_type=train_type, warmup_steps=0)
    result = estimate(config)

    class Features:
        def rows(self, chosen):
            rows = [prompts.index(prompt) for prompt in chosen]
            return {name: tensor[rows] for name, tensor in conditioning.items()}

    save_memory(pipeline)
    if use_checkpoint:
        checkpoint_activations(pipeline)
    rewards = Ensemble({"redness": (Redness(), 1.0)})
    size = {"size": (64, 64), "base_model": "tiny-sprint"}
    trainer = Trainer(pipeline, rewards, prompts, Features(), config, **size)
    with LiveBytes() as live:
        next(trainer.updates())
    assert live.now == pytest.approx(result.gradients + result.optimizer, rel=0.01)
    assert live.peak == pytest.approx(result.peak, rel=0.1)


@pytest.mark.parametrize("optim", OPTIMIZER_COPIES)
def test_optimizers_hold_as_much_as_was_estimated(optim):
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 1000))
    slope = torch.linspace(0.1, 3, 1000)
    held = []
    with LiveBytes() as live:
        weight.grad = torch.zeros_like(weight)
        optimizer = make_optimizer([weight], settings(optim=optim, lr=0.1))

        def closure() -> float:
            held.append(live.now - weight.nbytes)
            with torch.no_grad():  # of slope (w - 0.3)^4 - cos(9 w) / 9
                weight.grad.copy_(4 * slope * (weight - 0.3) ** 3 + torch.sin(9 * weight))
                return float((slope * (weight - 0.3) ** 4 - torch.cos(9 * weight) / 9).sum())

        for _ in range(8):
            optimizer.step(closure)
    assert max(held) == pytest.approx(OPTIMIZER_COPIES[optim] * weight.nbytes, rel=0.1)


def test_saving_memory_lowers_the_estimate():
    plain = small_pipeline_estimate(memsave=False)
    memsave = small_pipeline_estimate()
    checkpoint = small_pipeline_estimate(use_checkpoint=True, memsave=False)
    both = small_pipeline_estimate(use_checkpoint=True)
    assert both.activations <= checkpoint.activations
    assert memsave.activations < plain.activations
    assert checkpoint.activations < plain.activations
    assert checkpoint.total < plain.total
    rewards = {"rewards": {"hps": 1.0}}
    assert (
        small_pipeline_estimate(**rewards, use_checkpoint=True).reward_activations
        < small_pipeline_estimate(**rewards).reward_activations
    )


def test_the_estimate_follows_the_settings():
    plain = small_pipeline_estimate()
    assert plain.average == 0
    assert small_pipeline_estimate(ema_decay=0.9).average == plain.adapter
    assert small_pipeline_estimate(optim="adamw").optimizer == 2 * plain.adapter
    half = small_pipeline_estimate(precision="bfloat16")
    assert (half.network, half.vae) == (plain.network // 2, plain.vae // 2)
    assert half.adapter == plain.adapter
    assert small_pipeline_estimate(max_generator_steps=3).activations > plain.activations
    assert small_pipeline_estimate(batch_size=6).activations > 1.5 * plain.activations
    assert small_pipeline_estimate(batch_size=6).encoded_prompts == plain.encoded_prompts
    depthwise = small_pipeline_estimate(adapt_depthwise=True)
    assert depthwise.adapter_parameters > plain.adapter_parameters


def test_processes_share_the_batch_and_with_shard_the_network():
    pipeline = build_tiny("sana_sprint").pipeline
    one, alone = (settings(image_size=16, batch_size=size) for size in (6, 2))
    shared = estimate(one, pipeline, num_processes=3)
    assert shared.activations == estimate(alone, pipeline).activations
    sharded = estimate(dataclasses.replace(one, shard=True), pipeline, num_processes=3)
    assert sharded.network == shared.network // 3
    uneven = estimate(dataclasses.replace(one, batch_size=7), pipeline, num_processes=3)
    assert "3 of 7 images at a time in each of 3 processes" in uneven.title


def test_an_adapter_to_go_on_from_counts_with_its_own_rank(tmp_path):
    path = save_adapter(build_tiny("sana_sprint").hypernetwork(rank=7), tmp_path / "f.safetensors")
    result = small_pipeline_estimate(init_adapter=path)
    assert result.adapter_parameters == small_pipeline_estimate(lora_rank=7).adapter_parameters


def test_the_lines_add_up_to_the_total():
    result = estimate(settings(rewards={"hps": 1.0, "imagereward": 1.0}))
    sizes = [float(line.split()[0]) for line in result.lines() if " GB  " in line]
    assert sizes[-2] == pytest.approx(result.total / 1e9, abs=0.05)
    assert sum(sizes[:-2]) == pytest.approx(sizes[-2], abs=0.5)
    assert "tiny-sprint at 64 x 64 pixels, 3 of 3 images at a time in one process" in result.lines()


def test_rewards_lie_beside_each_other_and_run_one_after_another():
    two = {"hps": 1.0, "imagereward": 1.0}
    larger = small_pipeline_estimate(rewards={"hps": 1.0})
    both = small_pipeline_estimate(rewards=two)
    assert both.rewards == larger.rewards + 4 * get_reward("imagereward").size.parameters
    assert both.reward_activations == larger.reward_activations
    assert larger.backward == 0  # theirs are gone when the generator's pass is at its peak
    half = small_pipeline_estimate(rewards=two, precision="bfloat16")
    assert half.rewards == both.rewards // 2


def test_every_reward_has_a_size():
    assert all(reward.size is not None for reward in REWARDS)


def test_a_reward_of_unknown_size_is_said_to_be_left_out(monkeypatch):
    known = small_pipeline_estimate()
    monkeypatch.setattr(Redness, "size", None)
    result = small_pipeline_estimate(rewards={"redness": 1.0, "hps": 1.0})
    assert "not counted: redness, whose size is unknown" in result.lines()
    assert result.rewards == 4 * get_reward("hps").size.parameters
    assert not [line for line in known.lines() if "not counted" in line]


@pytest.mark.parametrize("name", ["hps", "imagereward"])
def test_reward_sizes_are_those_of_the_published_networks(name):
    shapes = published(name)
    if name == "hps":
        used = [key for key in shapes if key.startswith("visual.") or key == "logit_scale"]
    else:
        used = [key for key in shapes if not UNUSED & set(key.split("."))]
    expected = sum(torch.Size(shapes[key]).numel() for key in used)
    assert get_reward(name).size.parameters == expected


def test_the_embedded_reward_has_its_size():
    rewards = load_rewards({"tiny-preference": 1.0})
    (encoder,) = {m for m in rewards.modules() if hasattr(m, "fix_texts")}
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    with LiveBytes() as live:
        features = encoder.image_features(images)
    assert features.requires_grad
    kept = live.now / 4 / 2
    assert get_reward("tiny-preference").size.activations == pytest.approx(kept, rel=0.1)
    encoder.fix_texts(lambda prompts: torch.zeros(len(prompts), 64))
    assert count(rewards) == get_reward("tiny-preference").size.parameters


@pytest.mark.parametrize(
    ("name", "width", "layers", "activation"),
    [("hps", 1280, 32, "gelu"), ("aesthetic", 1024, 24, "quick_gelu")],
)
def test_reward_activations_are_those_of_their_networks(name, width, layers, activation):
    shape = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=16,
        patch_size=14,
        projection_dim=width * 4 // 5 if name == "hps" else 768,
        hidden_act=activation,
    )
    with torch.device("meta"):
        vision = CLIPVisionModelWithProjection(shape).to(torch.bfloat16)
        images = torch.empty(1, 3, 512, 512, requires_grad=True)
    vision.eval().requires_grad_(False)
    with shapes_as_on_gpus(), LiveBytes() as live:
        output = vision(pixel_values=Preprocess()(images).to(torch.bfloat16))
    assert output.image_embeds.requires_grad
    assert get_reward(name).size.activations == pytest.approx(live.now / 2, rel=0.05)
    assert get_reward(name).size.parameters == pytest.approx(count(vision), rel=0.01)


RUNS = {
    "sana": ({"batch_size": 18}, 6),
    "sd-turbo": ({"batch_size": 48}, 6),
    "flux": ({"batch_size": 7, "optim": "adamw", "use_checkpoint": True}, 7),
}


@pytest.mark.parametrize("name", ["sana", "sd-turbo", pytest.param("flux", marks=pytest.mark.slow)])
def test_the_published_runs_fit_on_gpus_of_80_gb(name):
    changes, processes = RUNS[name]
    result = estimate(TrainingConfig(model=name, **changes), num_processes=processes)
    assert result.network_parameters == PUBLISHED[name].parameters
    assert result.adapter_parameters == ADAPTER_PARAMETERS[name]
    assert result.network == 2 * PUBLISHED[name].parameters
    assert 30e9 < result.total < 80e9
    side = PUBLISHED[name].image_size
    assert result.lines()[0].startswith(f"{name} at {side} x {side} pixels")
