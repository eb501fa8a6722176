"""Jobs: shared out once, and done when all of their result is written."""

import pytest
import torch

from hypernoise.training.evaluation import (
    jobs,
    methods,
)
from hypernoise.training.evaluation.runner import noise_seed


def test_every_image_has_a_noise_of_its_own():
    """Also among the candidates that best-of-50 draws for another image."""
    seeds = [
        noise_seed(number, seed) + candidate * methods._CANDIDATE_STRIDE
        for number in range(300)
        for seed in range(4)
        for candidate in range(50)
    ]
    assert len(set(seeds)) == len(seeds)


def new_job(cost: int, seed: int) -> jobs.Job:
    return jobs.Job("base", 1, 0, (seed,), 0, (0, 1), cost)


def test_jobs_are_distributed_once_and_evenly_and_keep_their_order():
    work = [new_job(cost, i) for i, cost in enumerate([1, 100, 2, 60, 50, 3])]
    shares = jobs.distribute(work, 2)
    assert sorted(job.seed for share in shares for job in share) == list(range(6))
    assert {sum(job.cost for job in share) for share in shares} == {106, 110}
    assert all([c.seed for c in share] == sorted(c.seed for c in share) for share in shares)
    assert jobs.distribute(work, 1) == [work]
    assert jobs.distribute(work[:1], 3) == [work[:1], [], []]


def test_a_job_s_file_of_another_evaluation_or_a_damaged_one_is_named(tmp_path):
    file = tmp_path / "job.json"
    identity = {"model": "tiny-sprint", "prompts": "abc"}
    result = jobs.JobResult(
        identity=identity,
        seconds_per_image=[0.1],
        forward_passes=1.0,
        backward_passes=0.0,
        total=[1.0, 2.0],
        scores={"redness": [1.0, 2.0]},
        correct=None,
        f_squared=None,
    )
    assert jobs.read_result(file, identity) is None
    images = torch.rand(2, 3, 4, 4)
    jobs.write_result(file, result, {jobs.SHOWN: jobs.as_bytes(images)})
    assert jobs.read_result(file, identity) == result
    assert torch.allclose(jobs.read_job_tensors(file)[jobs.SHOWN], images, atol=1 / 255)
    with pytest.raises(ValueError, match="prompts was 'abc' and is 'abd'"):
        jobs.read_result(file, {**identity, "prompts": "abd"})
    file.write_text(file.read_text()[:-20])
    with pytest.raises(ValueError, match="job.json is damaged"):
        jobs.read_result(file, identity)


def test_a_job_is_done_when_all_of_it_is_written(tmp_path):
    file = tmp_path / "job.json"
    result = jobs.JobResult({}, [0.1], 1.0, 0.0, [1.0], {"redness": [1.0]}, None, None)
    file.with_suffix(".safetensors").mkdir()  # so that nothing can be written there
    with pytest.raises(OSError):
        jobs.write_result(file, result, {jobs.SHOWN: torch.zeros(1, 3, 4, 4)})
    assert jobs.read_result(file, {}) is None
