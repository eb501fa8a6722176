"""Training on every family: 20 updates on tiny networks with random weights."""

import pytest
import torch

from hypernoise.hypernoise_core.adapter import load_adapter, load_generator_lora, save_adapter
from hypernoise.hypernoise_core.families import FAMILIES
from hypernoise.hypernoise_core.generator_lora import save_generator_lora
from hypernoise.hypernoise_core.rewards import load_rewards
from hypernoise.tests.core.conftest import BATCH, build_tiny
from hypernoise.training.config import TrainingConfig
from hypernoise.training.memory import checkpoint_activations, save_memory
from hypernoise.training.trainer import Trainer

PROMPTS = [str(i) for i in range(BATCH)]


class Rows:
    def __init__(self, conditioning):
        self.conditioning = conditioning

    def rows(self, prompts):
        rows = [int(prompt) for prompt in prompts]
        return {name: tensor[rows] for name, tensor in self.conditioning.items()}


def train(name: str, savers=(), **settings) -> tuple[Trainer, list[dict[str, float]]]:
    tiny = build_tiny(name)
    for saver in savers:
        saver(tiny.pipeline)
    config = TrainingConfig(
        rewards={"redness": 1.0},
        precision="float32",
        **{"lora_rank": 4, "batch_size": 3, "steps": 20, "optim": "adam", "lr": 5e-3} | settings,
    )
    trainer = Trainer(
        tiny.pipeline,
        load_rewards({"redness": 1.0}),
        PROMPTS,
        Rows(tiny.conditioning),
        config,
        size=(16, 16),
        base_model=name,
    )
    return trainer, list(trainer.updates())


@pytest.mark.parametrize("train_type", ["noise", "finetune"])
@pytest.mark.parametrize("name", [family.name for family in FAMILIES])
def test_20_updates_raise_the_reward_and_make_an_adapter_that_loads(name, train_type, tmp_path):
    trainer, metrics = train(name, latent_type="multi", reg_weight=0.01, train_type=train_type)
    assert len(metrics) == 20
    assert metrics[-1]["redness"] > metrics[0]["redness"]
    file = tmp_path / "adapter.safetensors"
    if train_type == "noise":
        save_adapter(trainer.trained, file)
        loaded = load_adapter(file)
    else:
        save_generator_lora(trainer.trained, file)
        loaded = load_generator_lora(file)
    loaded.check_fits(trainer.network)


@pytest.mark.parametrize("name", [family.name for family in FAMILIES])
def test_saving_memory_changes_nothing_about_training(name):
    plain, metrics = train(name, steps=3, max_generator_steps=3)
    saving, same = train(
        name, (save_memory, checkpoint_activations), steps=3, max_generator_steps=3
    )
    for a, b in zip(metrics, same, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4, abs=1e-6)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)
    pairs = zip(plain.adapter.parameters(), saving.adapter.parameters(), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-2, atol=2e-4)


def test_depthwise_convolutions_are_adapted_on_request():
    layers = [
        train("sana_sprint", steps=1, adapt_depthwise=way)[0].adapter.layer_names
        for way in (False, True)
    ]
    assert all(name.endswith("conv_depth") for name in set(layers[1]) - set(layers[0]))
    assert len(layers[1]) == len(layers[0]) + 2


def test_bfloat16_networks_train_a_float32_adapter():
    tiny = build_tiny("sana_sprint")
    for part in (tiny.pipeline.transformer, tiny.pipeline.vae):
        part.to(torch.bfloat16)
    config = TrainingConfig(
        rewards={"redness": 1.0}, lora_rank=4, batch_size=3, steps=3, optim="adam", warmup_steps=0
    )
    rows = Rows(tiny.conditioning)
    trainer = Trainer(
        tiny.pipeline,
        load_rewards({"redness": 1.0}),
        PROMPTS,
        rows,
        config,
        size=(16, 16),
        base_model="tiny",
    )
    assert all(metrics["grad_norm"] > 0 for metrics in trainer.updates())
    assert {p.dtype for p in trainer.adapter.parameters()} == {torch.float32}
