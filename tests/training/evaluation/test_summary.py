"""The numbers of an evaluation's report, from images whose scores are known: worked out by hand."""

import math
from pathlib import Path

import pytest
import torch

from hypernoise.hypernoise_core.adapter import load_adapter, save_adapter
from hypernoise.training.embedded_models import EMBEDDED_ADAPTER
from hypernoise.training.evaluation import tables
from hypernoise.training.evaluation.adapters import Adapters
from hypernoise.training.evaluation.eval_prompts import load_eval_prompts, select_prompts
from hypernoise.training.evaluation.jobs import COPIES, Job, JobResult, as_bytes, write_result
from hypernoise.training.evaluation.metrics import SMALL, mean
from hypernoise.training.evaluation.results import RecoveredShare, Report
from hypernoise.training.evaluation.runner import Runner, prepare_parts
from hypernoise.training.evaluation.settings import EvaluationConfig
from hypernoise.training.evaluation.suite import Suite
from hypernoise.training.evaluation.summary import summarise
from hypernoise.training.processes import join

CAPTIONS = ["a red circle", "a blue square", "two circles"]  # colours twice, and counting
TOTALS = {  # of each prompt, by method, run and seed
    ("base", 0, 0): [1, 2, 3],
    ("base", 0, 1): [0, 2, 4],
    ("hypernoise", 0, 0): [2, 3, 3],
    ("hypernoise", 0, 1): [2, 2, 4],
    ("hypernoise", 1, 0): [2, 3, 3],
    ("hypernoise", 1, 1): [0, 4, 4],
    ("reno_50", 0, 0): [3, 4],
    ("reno_50", 0, 1): [3, 3],
}
CORRECT = {"base": [1, 0, 0], "hypernoise": [1, 1, 0], "reno_50": [1, 1]}
SECONDS = {0: [0.1, 0.2, 0.9], 1: [0.5, 0.6, 0.7]}  # of the batches, by seed
SHADES = [(0.0, 0.0), (0.0, 0.5), (0.0, 1.0)]  # of each prompt's images from the two noises


def result_of(suite: Suite, job: Job) -> JobResult:
    total = TOTALS[job.method, job.run, job.seed]
    return JobResult(
        identity=suite.identity(job),
        seconds_per_image=SECONDS[job.seed],
        forward_passes=2.0,
        backward_passes=1.0,
        total=list(map(float, total)),
        scores={"redness": [value / 2 for value in total]},
        correct=list(map(float, CORRECT[job.method])),
        f_squared=[0.25] * len(total) if job.method == "hypernoise" else None,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Prompts, and an adapter beside the embedded one."""
    folder = tmp_path_factory.mktemp("summary")
    (folder / "prompts.txt").write_text("\n".join(CAPTIONS))
    adapter = load_adapter(EMBEDDED_ADAPTER)
    with torch.no_grad():
        for branch in adapter.branches.values():
            branch.up.mul_(0.5)
    save_adapter(adapter, folder / "weaker.safetensors")
    return folder


def make_suite(folder: Path, out: str, **changes) -> Suite:
    settings = {
        "task": str(folder / "prompts.txt"),
        "methods": ("hypernoise", "reno_50"),
        "adapter": (EMBEDDED_ADAPTER, folder / "weaker.safetensors"),
        "steps": (1,),
        "seeds": 2,
        "search_prompts": 2,
        "rewards": "redness=2",
        "kl_noises": 1,
        "cache_dir": folder / "cache",
        "out": folder / out,
    }
    config = EvaluationConfig(**(settings | changes))
    prompts = load_eval_prompts(config, join())
    parts = prepare_parts(config, config.weights, prompts.texts())
    return Suite(Runner(config, parts, prompts, Adapters.load(config)))


@pytest.fixture(scope="module")
def suite(folder) -> Suite:
    suite = make_suite(folder, "out")
    for job in suite.jobs:
        shades = torch.tensor([SHADES[number][job.seed] for number in job.prompts])
        copies = shades.view(-1, 1, 1, 1).expand(-1, 3, SMALL, SMALL)
        write_result(job.file(folder / "out"), result_of(suite, job), {COPIES: as_bytes(copies)})
    return suite


@pytest.fixture(scope="module")
def report(suite) -> Report:
    return summarise(suite)


def test_a_gain_is_the_mean_over_prompts_noises_and_runs(report):
    ours = report.steps[1]["hypernoise"]
    assert ours.reward_mean == pytest.approx(16 / 6)
    assert ours.reward_gain == pytest.approx(4 / 6)
    assert ours.rewards["redness"].gain == pytest.approx(2 / 6)
    assert [run.reward_mean for run in ours.runs] == pytest.approx([16 / 6, 16 / 6])
    assert (ours.images, ours.prompts) == (12, 3)


def test_passes_add_up_and_plain_noise_has_no_kl(report):
    ours, base = (report.steps[1][name] for name in ("hypernoise", "base"))
    assert ours.network_evaluations == 3 == ours.forward_passes + ours.backward_passes
    assert base.kl == 0 < ours.kl


def test_of_a_single_prompt_the_interval_is_unknown():
    one, two = mean([1, 2], ["a", "a"]), mean([1, 2], ["a", "b"])
    assert one.value == two.value == 1.5
    assert math.isnan(one.low) and math.isnan(one.high) and two.low < two.high


def test_wins_are_those_of_the_method_over_base_and_ties_count_half(report):
    """Of 12 pairs 6 are won and 6 are tied."""
    table = report.steps[1]
    assert table["hypernoise"].win_rate == pytest.approx(0.75)
    assert table["reno_50"].win_rate == 1.0
    assert table["base"].win_rate == 0.5


def test_categories_weigh_the_same_in_the_checker_s_mean_and_in_its_gain(report):
    ours, base = (report.steps[1][name] for name in ("hypernoise", "base"))
    assert ours.checker == {"colors": 1.0, "counting": 0.0}
    assert (ours.checker_mean, base.checker_mean) == (0.5, 0.25)
    assert ours.checker_gain == 0.25  # over the prompts it would be a third
    assert [run.checker_mean for run in ours.runs] == [0.5, 0.5]


def test_a_share_of_reno_s_gain_is_of_the_prompts_that_reno_ran_on(report):
    """There base has 1.25 and 0.5, HyperNoise 2.25 and 1, ReNO 3.25 and 1."""
    assert report.recovered_share == RecoveredShare(steps=1, reward=0.5, checker_mean=1.0)


def test_seconds_are_of_the_median_batch_from_the_fastest_seed(report):
    assert report.steps[1]["base"].seconds_per_image == pytest.approx(0.2)


def test_diversity_is_held_against_base_s_on_the_same_prompts(report):
    table = report.steps[1]
    assert table["base"].pixel_diversity == pytest.approx(0.5, abs=0.01)
    assert table["hypernoise"].pixel_diversity_base == pytest.approx(0.5, abs=0.01)
    assert table["reno_50"].pixel_diversity_base == pytest.approx(0.25, abs=0.01)
    assert table["reno_50"].pixel_diversity == pytest.approx(0.25, abs=0.01)


def test_the_kl_is_the_mean_over_the_adapters(report, suite):
    of_each = [suite.kl("hypernoise", run)["kl"] for run in (0, 1)]
    assert of_each[0] != pytest.approx(of_each[1], rel=0.1)
    assert report.steps[1]["hypernoise"].kl == pytest.approx(sum(of_each) / 2)


def test_the_table_by_steps_has_base_on_the_prompts_of_methods_that_search(report):
    rows = dict(tables.steps_table(report).rows)
    assert rows["base"] == "0.250"
    assert rows["base, on the prompts of methods that search"] == "0.500"


def test_a_part_of_the_prompts_is_taken_at_equal_distances(folder):
    (folder / "eight.txt").write_text("\n".join(map(str, range(8))))
    config = EvaluationConfig(task=str(folder / "eight.txt"), max_prompts=3)
    assert select_prompts(config) == ["0", "2", "5"]


def test_a_table_stays_whole_whatever_its_names_hold():
    table = tables.TextTable("t", ["a|b", "c"], [["[d](e)", "f\n| g"]])
    assert table.markdown() == "| a\\|b | c |\n| --- | --- |\n| \\[d](e) | f \\| g |"


def test_fewer_prompts_are_searched_at_several_steps(folder):
    changes = {"steps": (2, 4), "slow_steps": (2, 4), "multi_step_search_prompts": 1}
    suite = make_suite(folder, "steps", **changes)
    prompts = {(c.method, c.steps): c.prompts for c in suite.jobs}
    assert prompts["base", 2] == prompts["base", 4] == (0, 1, 2)
    assert prompts["reno_50", 2] == (0, 1)
    assert prompts["reno_50", 4] == (0,)


def test_the_time_to_ask_for_paraphrases_counts(folder):
    """The file is what an earlier part of the run left."""
    changes = {"methods": ("base", "prompt_optimisation"), "seeds": 1, "max_prompts": 1}
    (out := folder / "asking").mkdir()
    (out / "cells").mkdir()
    (out / "wordings.json").write_text(
        '{"command": null, "seconds_per_prompt": 1000.0, "wordings": {"a red circle": '
        '["a red circle", "a photo of a red circle"]}}'
    )
    suite = make_suite(folder, "asking", **changes)
    suite.run()
    seconds = {job.method: suite.result(job).seconds_per_image for job in suite.jobs}
    assert min(seconds["prompt_optimisation"]) > 1000 > max(seconds["base"])


def test_jobs_of_another_adapter_are_not_reused(folder, suite):
    other = make_suite(folder, "out", adapter=(folder / "weaker.safetensors",))
    job = next(job for job in other.jobs if job.method == "hypernoise")
    with pytest.raises(ValueError, match="another evaluation: adapter was"):
        other.result(job)
