"""The trainer: it follows the objective, respects its seed and its time limit."""

import pytest
import torch

from hypernoise.hypernoise_core.adapter import load_adapter, save_adapter
from hypernoise.hypernoise_core.generate import encode_prompts, generate
from hypernoise.hypernoise_core.rewards import load_rewards
from hypernoise.training.config import TrainingConfig
from hypernoise.training.loss import hypernoise_loss
from hypernoise.training.pipelines import load_pipeline
from hypernoise.training.trainer import Trainer, clip_images

PROMPTS = ["a red circle", "two blue squares", "a white triangle above a green square"]


@pytest.fixture(scope="module")
def parts():
    return load_pipeline("tiny-sprint"), load_rewards({"tiny-preference": 1.0})


def make_trainer(parts, **settings) -> Trainer:
    settings = {"steps": 3, "batch_size": 4, "rank": 4, "alpha": 8.0, "warmup_steps": 0, **settings}
    config = TrainingConfig(**settings)
    conditioning = encode_prompts(parts[0], PROMPTS)
    return Trainer(*parts, PROMPTS, conditioning, config, size=(64, 64), base_model="tiny-sprint")


def weights(hypernetwork) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in hypernetwork.parameters()])


def test_the_loss_weighs_the_size_of_f_against_the_reward():
    delta, reward = torch.full((2, 1, 2, 2), 3.0), torch.tensor([1.0, 2.0])
    terms = hypernoise_loss(delta, reward, penalty_weight=0.5)
    assert terms.total.item() == pytest.approx(0.5 * 9.0 - 1.5)
    assert terms.penalty.item() == pytest.approx(9.0)


def test_one_steep_image_does_not_outweigh_the_others():
    gradient = torch.ones(5, 2, 4, 4) * torch.tensor([1.0, 2.0, 3.0, 4.0, 400.0]).view(-1, 1, 1, 1)
    clipped = clip_images(gradient, 0.5)
    torch.testing.assert_close(clipped[:, 0, 0, 0], torch.tensor([1.0, 2.0, 3.0, 3.0, 3.0]))
    assert torch.equal(clip_images(gradient, 1.0), gradient)
    assert torch.equal(clip_images(torch.zeros_like(gradient), 0.5), torch.zeros_like(gradient))


def test_the_reward_s_gradient_is_clipped_image_by_image(parts):
    """At the first step f is 0, so that the size of the update's gradient comes from it alone."""
    norms = {}
    for quantile in (0.01, 1.0):
        trainer = make_trainer(parts, steps=1, batch_size=12, image_grad_quantile=quantile)
        trainer.run()
        norms[quantile] = trainer.history.grad_norm[0]
    assert 0 < norms[0.01] < 0.7 * norms[1.0]


def test_training_changes_the_hypernetwork_and_nothing_else(parts):
    pipeline, reward = parts
    frozen = [p.clone() for p in (*pipeline.transformer.parameters(), *reward.parameters())]
    trainer = make_trainer(parts)
    before = weights(trainer.hypernetwork)
    trained = trainer.run()
    assert not torch.equal(before, weights(trained))
    after = (*pipeline.transformer.parameters(), *reward.parameters())
    assert all(torch.equal(a, b) for a, b in zip(frozen, after, strict=True))
    assert not any(module._forward_hooks for module in pipeline.transformer.modules())


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(parts):
    runs = [weights(make_trainer(parts, seed=seed).run()) for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_training_raises_the_reward_on_noises_it_has_not_seen(parts):
    pipeline, reward = parts[0], load_rewards({"redness": 10.0})
    trained = make_trainer((pipeline, reward), steps=30, batch_size=12).run()
    prompts, seeds = PROMPTS * 8, range(700, 700 + 8 * len(PROMPTS))
    base, ours = (
        reward.score(generate(pipeline, prompts, f, seeds=seeds, batch_size=24).images, prompts)
        for f in (None, trained)
    )
    assert (ours > base).float().mean() > 0.8


def test_the_time_limit_ends_a_run(parts):
    trainer = make_trainer(parts, steps=100_000, max_seconds=0.5)
    trainer.run()
    assert 1 <= len(trainer.history.reward) < 1000


def test_the_adapter_says_what_it_was_trained_on(parts, tmp_path):
    path = tmp_path / "f.safetensors"
    save_adapter(make_trainer(parts, steps=2).run(), path)
    metadata = load_adapter(path).metadata
    assert metadata.base_model == "tiny-sprint"
    assert metadata.training_steps == 2
    assert metadata.rewards == {"tiny-preference": 1.0}


@pytest.mark.parametrize(
    "bad",
    [{"steps": 0}, {"rank": -1}, {"learning_rate": float("nan")}, {"max_seconds": 0.0}]
    + [{"image_grad_quantile": value} for value in (0.0, 1.5)],
)
def test_settings_out_of_range_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        TrainingConfig(**bad)


def test_training_without_prompts_is_refused(parts):
    with pytest.raises(ValueError, match="at least one prompt"):
        Trainer(*parts, [], {}, TrainingConfig(), size=(64, 64), base_model="tiny-sprint")
