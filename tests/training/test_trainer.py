"""The trainer: it follows the objective, respects its seed and its time limit, and goes on."""

from itertools import islice

import pytest
import torch

from hypernoise.hypernoise_core.adapter import load_adapter, save_adapter
from hypernoise.hypernoise_core.generate import encode_prompts, generate
from hypernoise.hypernoise_core.rewards import Ensemble, load_rewards
from hypernoise.hypernoise_core.rewards.redness import Redness
from hypernoise.training import trainer as trainer_module
from hypernoise.training.config import TrainingConfig
from hypernoise.training.loss import regulariser
from hypernoise.training.optimization import learning_rate, make_optimizer
from hypernoise.training.pipelines import load_pipeline
from hypernoise.training.trainer import Trainer, clip_images

PROMPTS = ["a red circle", "two blue squares", "a white triangle above a green square"]
SMALL = {
    "model": "tiny-sprint",
    "rewards": {"tiny-preference": 1.0},
    "steps": 3,
    "batch_size": 4,
    "lora_rank": 4,
    "optim": "adamw",
    "lr": 1.5e-3,
    "warmup_steps": 0,
    "precision": "float32",
}


class Encoded:
    """Conditioning of some prompts, in memory."""

    def __init__(self, pipeline, prompts):
        self.prompts, self.conditioning = prompts, encode_prompts(pipeline, prompts)

    def rows(self, prompts):
        rows = [self.prompts.index(prompt) for prompt in prompts]
        return {name: tensor[rows] for name, tensor in self.conditioning.items()}


@pytest.fixture(scope="module")
def parts():
    pipeline = load_pipeline("tiny-sprint")
    return pipeline, load_rewards({"tiny-preference": 1.0}), Encoded(pipeline, PROMPTS)


def make_trainer(parts, prompts=PROMPTS * 4, **settings) -> Trainer:
    pipeline, rewards, features = parts
    config = TrainingConfig(**{**SMALL, **settings})
    return Trainer(
        pipeline, rewards, prompts, features, config, size=(64, 64), base_model="tiny-sprint"
    )


def weights(adapter) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in adapter.parameters()])


class Troubled(Redness):
    """Redness that is no number at some of its calls."""

    def __init__(self, bad_calls=()):
        super().__init__()
        self.calls, self.bad_calls = 0, bad_calls

    def score_batch(self, batch, prompts):
        self.calls += 1
        score = super().score_batch(batch, prompts)
        return score * float("nan") if self.calls in self.bad_calls else score


def test_regularisers_measure_f_or_the_norm_of_the_noise():
    output, modulated = torch.full((2, 1, 2, 2), 3.0), torch.full((2, 1, 2, 2), 1.0)
    assert regulariser(output, modulated, "l2").tolist() == [9.0, 9.0]
    expected = 0.5 * 4 - 3 * torch.tensor(2.0).log()  # norm 2 in 4 dimensions
    torch.testing.assert_close(regulariser(output, modulated, "kl"), expected.repeat(2))


def test_one_steep_image_does_not_outweigh_the_others():
    gradient = torch.ones(5, 2, 4, 4) * torch.tensor([1.0, 2.0, 3.0, 4.0, 400.0]).view(-1, 1, 1, 1)
    limit = float(gradient[2].norm())
    clipped = clip_images(gradient, limit)
    torch.testing.assert_close(clipped[:, 0, 0, 0], torch.tensor([1.0, 2.0, 3.0, 3.0, 3.0]))
    assert torch.equal(clip_images(gradient, float("inf")), gradient)
    assert torch.equal(clip_images(torch.zeros_like(gradient), 1.0), torch.zeros_like(gradient))


def test_the_reward_s_gradient_is_clipped_image_by_image(parts):
    """At the first step f is 0, so that the size of the update's gradient comes from it alone."""
    norms = {}
    for quantile in (0.01, 1.0):
        trainer = make_trainer(parts, batch_size=12, image_grad_quantile=quantile)
        norms[quantile] = next(trainer.updates())["grad_norm"]
    assert 0 < norms[0.01] < 0.7 * norms[1.0]


@pytest.mark.parametrize("train_type", ["noise", "finetune"])
def test_training_changes_the_adapter_and_nothing_else(parts, train_type):
    pipeline, reward, _ = parts
    frozen = [p.clone() for p in (*pipeline.transformer.parameters(), *reward.parameters())]
    trainer = make_trainer(parts, train_type=train_type)
    before = weights(trainer.adapter)
    assert not torch.equal(before, weights(trainer.run()))
    after = (*pipeline.transformer.parameters(), *reward.parameters())
    assert all(torch.equal(a, b) for a, b in zip(frozen, after, strict=True))
    assert not any(module._forward_hooks for module in pipeline.transformer.modules())


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(parts):
    runs = [weights(make_trainer(parts, seed=seed).run()) for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("train_type", ["noise", "finetune"])
def test_a_run_starts_with_the_weights_of_its_seed(parts, train_type):
    first, again, other = (
        weights(make_trainer(parts, seed=seed, train_type=train_type).adapter) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("train_type", ["noise", "finetune"])
def test_training_raises_the_reward_on_noises_it_has_not_seen(parts, train_type):
    pipeline, _, features = parts
    reward = load_rewards({"redness": 10.0})
    settings = {"steps": 15, "batch_size": 12, "train_type": train_type}
    trained = make_trainer((pipeline, reward, features), **settings).run()
    prompts, seeds = PROMPTS * 8, range(700, 700 + 8 * len(PROMPTS))
    options = {"seeds": seeds, "batch_size": 24}
    base = generate(pipeline, prompts, None, **options).images
    if train_type == "noise":
        ours = generate(pipeline, prompts, trained, **options).images
    else:
        with trained.attached(pipeline.transformer):
            ours = generate(pipeline, prompts, None, **options).images
    assert (reward.score(ours, prompts) > reward.score(base, prompts)).float().mean() > 0.8


def gradient(trainer: Trainer) -> torch.Tensor:
    next(trainer.updates())
    return torch.cat([p.grad.flatten() for p in trainer.adapter.parameters()])


@pytest.mark.parametrize("train_type", ["noise", "finetune"])
@pytest.mark.parametrize("count", [12, 10])
def test_batches_add_up_to_the_gradient_of_all_their_images(parts, count, train_type):
    """The last of four batches of 3 has 3 images or one; with one noise their order is all one."""
    prompts = (PROMPTS * 4)[:count]
    settings = {"grad_clip": 1e9, "train_type": train_type, "latent_type": "one"}
    whole = gradient(make_trainer(parts, prompts, batch_size=12, **settings))
    added = make_trainer(parts, prompts, batch_size=3, accumulation_steps=4, **settings)
    assert [len(b.prompts) for b in added.plan.update(0)] == [3, 3, 3, count - 9]
    torch.testing.assert_close(gradient(added), whole, rtol=1e-4, atol=1e-5 * whole.abs().max())


@pytest.mark.parametrize("optim", ["sgd", "adam", "adamw", "lbfgs"])
def test_every_optimizer_lowers_the_loss_of_a_fixed_batch(parts, optim):
    pipeline, _, features = parts
    lr = {"sgd": 0.3, "adam": 3e-3, "adamw": 3e-3, "lbfgs": 0.5}[optim]
    trainer = make_trainer(
        (pipeline, load_rewards({"redness": 1.0}), features),
        PROMPTS + PROMPTS[:1],
        optim=optim,
        lr=lr,
        steps=3 if optim == "lbfgs" else 8,
        latent_type="multi",
        reg_weight=0.01,
    )
    losses = [metrics["loss"] for metrics in trainer.updates()]
    assert losses[-1] < losses[0] - 0.01


def test_a_batch_without_a_number_is_left_out_and_counted(parts):
    pipeline, _, features = parts
    settings = {"batch_size": 6, "accumulation_steps": 2, "steps": 1}

    def run(bad_calls):
        rewards = Ensemble({"redness": (Troubled(bad_calls), 1.0)})
        trainer = make_trainer((pipeline, rewards, features), **settings)
        (metrics,) = trainer.updates()
        return trainer, metrics

    trainer, metrics = run({2})
    assert (metrics["images"], metrics["skipped"]) == (6, 1)
    assert torch.isfinite(weights(trainer.adapter)).all()
    trainer, metrics = run({1, 2})
    assert metrics["images"] == 0 and trainer.skipped == 3  # two batches and the update
    assert torch.equal(weights(trainer.adapter), weights(make_trainer(parts).adapter))


@pytest.mark.parametrize("train_type", ["noise", "finetune"])
def test_a_batch_with_an_image_that_is_no_number_is_left_out_and_counted(
    parts, train_type, monkeypatch
):
    """As half precision overflows in a decoder; no reward takes such an image."""
    pipeline, decode, calls = parts[0], parts[0].vae.decode, []

    def decoded(*arguments, **options):
        calls.append(1)
        image, *rest = decode(*arguments, **options)
        bad = torch.full_like(image[:1], torch.nan)
        return (torch.cat([image[1:], bad]) if len(calls) == 2 else image, *rest)

    monkeypatch.setattr(pipeline.vae, "decode", decoded)
    trainer = make_trainer(parts, steps=3, train_type=train_type)
    metrics = list(trainer.updates())
    assert [m["skipped"] for m in metrics] == [0, 2, 2]  # the batch, and its update
    assert metrics[1]["images"] == 0 and metrics[2]["images"] > 0
    assert all(torch.isfinite(p).all() for p in trainer.adapter.parameters())


def test_a_run_that_gets_no_gradient_any_more_ends(parts):
    pipeline, _, features = parts
    rewards = Ensemble({"redness": (Troubled(range(1000)), 1.0)})
    trainer = make_trainer((pipeline, rewards, features), steps=1000)
    with pytest.raises(ValueError, match="no finite gradient"):
        trainer.run()
    assert trainer.step < 100


def test_skipped_updates_end_a_run_only_where_they_follow_each_other(parts, monkeypatch):
    monkeypatch.setattr(trainer_module, "MAX_SKIPPED", 2)
    pipeline, _, features = parts

    def trainer(bad_calls) -> Trainer:
        rewards = Ensemble({"redness": (Troubled(bad_calls), 1.0)})
        return make_trainer((pipeline, rewards, features), steps=5, batch_size=1)

    (now_and_then := trainer({1, 3, 5})).run()
    assert now_and_then.step == 5 and now_and_then.skipped == 6  # each batch and its update
    with pytest.raises(ValueError, match="2 updates in a row.*up to update 4"):
        trainer({1, 3, 4}).run()


@pytest.mark.parametrize(
    ("optim", "steps", "ema_decay"), [("sgd", 6, 0.0), ("adamw", 6, 0.9), ("lbfgs", 2, 0.0)]
)
def test_a_resumed_run_ends_with_the_same_bits(parts, optim, steps, ema_decay, tmp_path):
    settings = {"optim": optim, "ema_decay": ema_decay, "steps": steps, "schedule": "cosine"}
    settings |= {"max_generator_steps": 2}
    uninterrupted = make_trainer(parts, **settings)
    uninterrupted.run()
    first = make_trainer(parts, **settings)
    list(islice(first.updates(), steps // 2))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = make_trainer(parts, **settings)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    second.run()
    assert second.step == steps
    assert torch.equal(weights(uninterrupted.trained), weights(second.trained))
    assert torch.equal(weights(uninterrupted.adapter), weights(second.adapter))


def test_what_draws_without_a_generator_goes_on_where_it_was(parts):
    """Such as dropout in a network that was not made for it."""
    first = make_trainer(parts, steps=2)
    torch.manual_seed(5)
    state, drawn = first.state_dict(), torch.rand(3)
    second = make_trainer(parts, steps=2)
    torch.manual_seed(6)
    second.load_state_dict(state)
    assert torch.equal(torch.rand(3), drawn)


def test_the_average_follows_the_weights_behind(parts):
    trainer = make_trainer(parts, ema_decay=0.5, steps=2)
    seen = []
    for _ in trainer.updates():
        seen.append(weights(trainer.adapter).clone())
    torch.testing.assert_close(weights(trainer.trained), 0.5 * seen[0] + 0.5 * seen[1])


def test_training_goes_on_from_an_adapter(parts, tmp_path):
    first = make_trainer(parts, steps=2)
    save_adapter(first.run(), tmp_path / "f.safetensors")
    second = make_trainer(parts, init_adapter=tmp_path / "f.safetensors", lora_rank=99, steps=2)
    start = {name: branch.up.clone() for name, branch in second.adapter.branches.items()}
    trained = first.trained.branches
    assert all(torch.equal(start[name], branch.up) for name, branch in trained.items())
    assert second.adapter.metadata.rank == 4
    after = second.run().branches
    assert not any(torch.equal(start[name], branch.up) for name, branch in after.items())


def test_output_that_takes_the_noise_s_place_is_used_that_way_everywhere(parts, tmp_path):
    """f = 0 at the start, so that the generator starts from zeros instead of noise."""
    pipeline, _, _ = parts
    trainer = make_trainer(parts, modulate_noise=False)
    assert next(trainer.updates())["norm"] == 0.0
    fresh = make_trainer(parts, modulate_noise=False).adapter
    save_adapter(fresh, tmp_path / "f.safetensors")
    loaded = load_adapter(tmp_path / "f.safetensors")
    assert loaded.metadata.replaces_noise
    noise = torch.zeros(1, *trainer.latent_shape)
    options = {"seeds": [5], "height": 64, "width": 64}
    ours = generate(pipeline, PROMPTS[:1], loaded, **options)
    zeros = generate(pipeline, PROMPTS[:1], None, noise=noise, **options)
    torch.testing.assert_close(ours.images, zeros.images)
    half = generate(pipeline, PROMPTS[:1], loaded, strength=0.5, **options)
    torch.testing.assert_close(half.delta, -0.5 * half.noise)


def test_the_gradient_goes_through_all_steps_of_the_generator(parts):
    trainer = make_trainer(parts, max_generator_steps=4, steps=6)
    assert len({b.generator_steps for step in range(6) for b in trainer.plan.update(step)}) > 1
    assert all(metrics["grad_norm"] > 0 for metrics in trainer.updates())


def test_the_time_limit_ends_a_run(parts):
    trainer = make_trainer(parts, steps=100_000, max_seconds=0.5)
    trainer.run()
    assert 1 <= trainer.step < 1000


def test_a_time_limit_beside_the_number_of_updates_ends_no_run_later(parts):
    trainer = make_trainer(parts, steps=2, max_seconds=1000, lr=1.0, schedule="linear")
    metrics = list(islice(trainer.updates(), 3))
    assert [m["lr"] for m in metrics] == [1.0, 0.5]


def test_the_time_of_a_resumed_run_counts_from_its_first_start(parts):
    first = make_trainer(parts, steps=2)
    next(first.updates())
    state = first.state_dict() | {"seconds": 100.0}

    def resumed(**settings) -> list[dict]:
        trainer = make_trainer(parts, **settings)
        trainer.load_state_dict(state)
        return list(islice(trainer.updates(), 1))

    assert [100 < metrics["seconds"] < 200 for metrics in resumed(steps=2)] == [True]
    assert resumed(steps=5, max_seconds=100) == []


def test_a_run_warms_up_from_its_first_update_on(parts):
    metrics = list(make_trainer(parts, lr=0.5, warmup_steps=2, batch_size=1).updates())
    assert [m["lr"] for m in metrics] == [0.0, 0.25, 0.5]


def test_an_update_s_gradient_is_clipped_to_its_limit(parts):
    trainer = make_trainer(parts, optim="sgd", lr=2.0, grad_clip=1e-3)
    before = weights(trainer.adapter)
    metrics = next(trainer.updates())
    assert metrics["grad_norm"] > 1e-3  # as it was before
    moved = (weights(trainer.adapter) - before).norm().item()
    assert moved == pytest.approx(2.0 * 1e-3, rel=1e-3)


def test_a_run_can_be_told_to_stop(parts):
    trainer = make_trainer(parts, steps=1000)
    for _ in trainer.updates():
        trainer.stop()
    assert trainer.step == 2


def test_the_adapter_says_what_it_was_trained_on(parts, tmp_path):
    path = tmp_path / "f.safetensors"
    save_adapter(make_trainer(parts, steps=2).run(), path)
    metadata = load_adapter(path).metadata
    assert metadata.base_model == "tiny-sprint"
    assert metadata.training_steps == 2
    assert metadata.rewards == {"tiny-preference": 1.0}


def test_a_last_layer_that_is_none_is_named(parts):
    with pytest.raises(ValueError, match="conv_out.*proj_out"):
        make_trainer(parts, last_layer_name="conv_out")


@pytest.mark.parametrize(("optim", "decay"), [("adam", 1.0), ("adamw", 1 - 0.1 * 0.2)])
def test_adam_s_steps_are_those_of_its_settings(optim, decay):
    """Two steps by hand; adamw alone has weight decay."""
    config = TrainingConfig(optim=optim, lr=0.1, adam_beta2=0.5, weight_decay=0.2)
    weight = torch.nn.Parameter(torch.tensor(1.0))
    optimizer = make_optimizer([weight], config)
    for gradient in (1.0, 3.0):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
    mean = (0.9 * 0.1 * 1 + 0.1 * 3) / (1 - 0.9**2)
    mean_square = (0.5 * 0.5 * 1 + 0.5 * 9) / (1 - 0.5**2)
    expected = (1.0 * decay - 0.1) * decay - 0.1 * mean / mean_square**0.5
    assert weight.item() == pytest.approx(expected, rel=1e-5)


def test_learning_rates_follow_their_schedules():
    def rates(**settings):
        config = TrainingConfig(lr=1.0, **settings)
        return [learning_rate(config, step, step / 8) for step in (0, 1, 2, 4, 8)]

    assert rates(warmup_steps=0) == [1, 1, 1, 1, 1]
    assert rates(warmup_steps=4) == [0, 0.25, 0.5, 1, 1]
    assert rates(warmup_steps=0, schedule="linear") == [1, 0.875, 0.75, 0.5, 0]
    assert rates(warmup_steps=0, schedule="cosine") == pytest.approx(
        [1, 0.962, 0.854, 0.5, 0], 1e-3
    )
