"""Which prompt and noise every image has: from the seed and the update's number alone."""

import pytest
import torch

from hypernoise.training.batches import BatchPlan
from hypernoise.training.config import TrainingConfig

PROMPTS = [f"prompt {i}" for i in range(10)]


def plan(prompts=PROMPTS, **settings) -> BatchPlan:
    return BatchPlan(prompts, TrainingConfig(**{"batch_size": 4, **settings}))


def flat(p: BatchPlan, step: int) -> list[tuple[str, int]]:
    return [pair for b in p.update(step) for pair in zip(b.prompts, b.seeds, strict=True)]


def test_an_epoch_takes_every_prompt_once_in_an_order_of_its_own():
    p = plan(accumulation_steps=2, epochs=2)
    assert (p.updates_per_epoch, p.steps) == (2, 4)
    epochs = [[q for s in (first, first + 1) for q, _ in flat(p, s)] for first in (0, 2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(PROMPTS)
    assert epochs[0] != epochs[1]


def test_the_last_update_of_an_epoch_has_what_is_left():
    p = plan(accumulation_steps=2)
    assert [[len(b.prompts) for b in p.update(s)] for s in range(2)] == [[4, 4], [2]]


def test_any_update_can_be_asked_for_first():
    first, second = plan(), plan()
    later = flat(first, 7)
    assert [flat(second, s) for s in range(8)][7] == later
    assert flat(plan(seed=1), 7) != later


def test_processes_share_each_batch_without_overlap():
    (batch, *_) = plan().update(0)
    shares = [batch.share(i, 3) for i in range(3)]
    assert sorted(p for s in shares for p in s.prompts) == sorted(batch.prompts)
    assert sorted(n for s in shares for n in s.seeds) == sorted(batch.seeds)
    assert [len(s.prompts) for s in shares] == [2, 1, 1]


def test_what_runs_for_company_is_a_whole_image_that_does_not_count():
    (batch, *_) = plan(PROMPTS[:2]).update(0)
    shares = [batch.share(i, 3, company=True) for i in range(3)]
    assert [s.counts for s in shares] == [True, True, False]
    assert shares[2].prompts == shares[0].prompts and shares[2].seeds == shares[0].seeds
    assert batch.share(2, 3).prompts == ()


@pytest.mark.parametrize(
    ("latent_type", "in_update", "in_run"),
    [("inf", 8, 24), ("batch", 1, 3), ("multi", 4, 4), ("one", 1, 1)],
)
def test_latent_types_draw_as_many_noises_as_they_say(latent_type, in_update, in_run):
    prompts = PROMPTS[:8] * 3
    p = plan(prompts, accumulation_steps=2, latent_type=latent_type)
    updates = [flat(p, step) for step in range(3)]
    assert len({seed for _, seed in updates[0]}) == in_update
    assert len({seed for update in updates for _, seed in update}) == in_run


def test_one_prompt_per_batch_repeats_it_with_other_noises():
    p = plan(one_prompt_per_batch=True, accumulation_steps=2)
    assert p.updates_per_epoch == 5
    for batch in p.update(0):
        assert len(batch.prompts) == 4 and len(set(batch.prompts)) == 1
        assert len(set(batch.seeds)) == 4


def test_noise_is_normal_and_depends_on_the_image_alone():
    (batch, *_) = plan(PROMPTS * 10, batch_size=100).update(0)
    noise, generators = batch.draw((4, 8, 8))
    assert noise.shape == (100, 4, 8, 8) and len(generators) == 100
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert torch.equal(batch.share(1, 2).draw((4, 8, 8))[0], noise[1::2])


def test_generator_steps_are_drawn_for_each_batch():
    assert {b.generator_steps for s in range(20) for b in plan().update(s)} == {1}
    drawn = [b.generator_steps for s in range(60) for b in plan(max_generator_steps=4).update(s)]
    assert set(drawn) == {1, 2, 3, 4}


def test_training_without_prompts_is_refused():
    with pytest.raises(ValueError, match="at least one prompt"):
        plan([])
