"""The evaluation: every method on the same noise and at its true cost, honest intervals, and runs
that go on where they were."""

import importlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

from hypernoise.hypernoise_core.adapter import load_adapter, save_adapter
from hypernoise.hypernoise_core.generate import encode_prompts, generate
from hypernoise.hypernoise_core.generator_lora import GeneratorLora, save_generator_lora
from hypernoise.hypernoise_core.hypernetwork import noise_penalty
from hypernoise.hypernoise_core.reno import RenoConfig
from hypernoise.hypernoise_core.rewards import load_rewards
from hypernoise.training.commands.card import write_card
from hypernoise.training.commands.evaluate import evaluate
from hypernoise.training.embedded import ASSETS, EMBEDDED_ADAPTER
from hypernoise.training.evaluation import (
    catalogue,
    cells,
    layouts,
    methods,
    metrics,
    perceptual,
    suite,
    trade_offs,
    wordings,
)
from hypernoise.training.evaluation.layouts import write_layout
from hypernoise.training.evaluation.questions import ask
from hypernoise.training.evaluation.settings import EvaluationConfig
from hypernoise.training.evaluation.suite import noise_seed
from hypernoise.training.pipelines import load_pipeline
from hypernoise.training.processes import join

PROMPTS = ["a red circle", "two blue squares", "a white triangle above a green square"]


@pytest.fixture(scope="module")
def task() -> methods.Task:
    pipeline = load_pipeline("tiny-sprint")
    return methods.Task(
        pipeline=pipeline,
        rewards=load_rewards({"tiny-preference": 1.0, "redness": 0.5}),
        prompts=PROMPTS,
        conditioning=encode_prompts(pipeline, PROMPTS),
        seeds=[5, 6, 7],
        size=(64, 64),
        batch_size=2,
    )


@pytest.fixture(scope="module")
def hypernetwork():
    return load_adapter(EMBEDDED_ADAPTER)


def new_lora(task: methods.Task, std: float) -> GeneratorLora:
    lora = GeneratorLora.initialise(task.network, "sana_sprint", rank=2, alpha=4)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for branch in lora.branches.values():
            branch.up.normal_(std=std, generator=generator)
    return lora


def test_a_fine_tune_is_compared_where_its_reward_is_ours():
    def entry(kind: str, reward: float, checker: float, pixels: float | None) -> dict:
        scores = {"checker_mean": checker, "pixel_diversity": pixels, "diversity": None}
        return {"kind": kind, "reward_mean": reward, **scores}

    table = {"base": entry("base", 10, 0.5, 0.2), "hypernoise": entry("hypernoise", 13, 0.8, 0.1)}
    ablation = {
        "lr_0.1_20": entry("finetune", 9, 0.4, 0.18),
        "lr_0.1_40": entry("finetune", 12, 0.6, 0.1),
        "lr_0.1_80": entry("finetune", 16, 0.2, 0.02),
        "lr_0.1_160": entry("finetune", 12, 0.0, 0.0),
        "lr_0.1_320": entry("finetune", 14, 0.0, 0.0),
        "lr_0.2_20": entry("finetune", 12.9, 0.4, 0.1),
        "rank_2": entry("hypernoise", 14, 0.4, 0.1),
    }
    paths = trade_offs.paths(table, ablation)
    assert {name: [stage.label for stage in stages] for name, stages in paths.items()} == {
        "lr_0.1": ["base", "20", "40", "80", "160", "320"],
        "lr_0.2": ["base", "20"],
        "rank": ["base", "2"],
    }
    # A quarter of the way from 12 to 16, the first time that the path is there.
    assert trade_offs.at_our_reward(table, ablation) == {
        "lr_0.1": pytest.approx({"checker_mean": 0.5, "pixel_diversity": 0.08}),
        "lr_0.2": None,
    }


# Methods


@pytest.mark.parametrize("steps", [1, 2])
def test_a_search_starts_from_the_image_that_it_improves(task, hypernetwork, steps):
    task = replace(task, steps=steps)
    base = methods.measure(task, methods.base)
    ours = methods.measure(task, methods.hypernoise(hypernetwork))
    cold = methods.measure(task, methods.reno(2))
    warm = methods.measure(task, methods.reno(2, hypernetwork))
    # What is found is never worse than the start, so it is at least the image of the same noise.
    assert (cold.reward >= base.reward - 1e-3).all() and cold.reward.sum() > base.reward.sum()
    assert (warm.reward >= ours.reward - 1e-3).all() and warm.reward.sum() > ours.reward.sum()
    assert warm.images.shape == base.images.shape == (3, 3, 64, 64)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_search_sees_the_images_of_its_noise_at_every_number_of_steps(task, steps):
    """Also where the sampler draws noise between the steps."""
    task = replace(task, steps=steps).rows(slice(2))
    seen: list[torch.Tensor] = []
    methods.search(task, RenoConfig(iterations=1), on_step=lambda _, made, __: seen.append(made))
    torch.testing.assert_close(seen[0], methods.base(task).images, rtol=0, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 4])
def test_passes_are_counted_per_image(task, hypernetwork, steps):
    task = replace(task, steps=steps)
    texts = {prompt: [prompt, "a green circle"] for prompt in PROMPTS}
    encode = lambda prompts: encode_prompts(task.pipeline, prompts)  # noqa: E731
    expected = {
        methods.base: (steps, 0),
        methods.hypernoise(hypernetwork): (steps + 1, 0),
        methods.finetune(new_lora(task, 0.1)): (steps, 0),
        methods.best_of(3): (3 * steps, 0),
        methods.reno(2): (3 * steps, 2 * steps),
        methods.reno(1, hypernetwork): (2 * steps + 1, steps),
        methods.prompt_optimisation(texts, encode): (2 * steps, 0),
    }
    for method, passes in expected.items():
        result = methods.measure(task, method)
        assert (result.forward_passes, result.backward_passes) == passes
        assert result.seconds_per_image > 0
    assert not task.network._forward_hooks


def test_best_of_n_chooses_by_the_weighted_rewards_and_begins_with_base(task):
    seeds = [[seed + k * methods._CANDIDATE_STRIDE for seed in task.seeds] for k in range(3)]
    rewards = torch.stack([task.score(replace(task, seeds=s).generate().images) for s in seeds])
    chosen = methods.measure(task, methods.best_of(3))
    assert torch.allclose(chosen.reward, rewards.max(0).values, atol=1e-4)
    assert torch.allclose(
        chosen.reward, chosen.scores["tiny-preference"] + 0.5 * chosen.scores["redness"]
    )
    assert torch.equal(methods.best_of(1)(task).images, methods.base(task).images)


def test_a_lora_changes_the_images_while_its_method_runs_and_leaves_nothing(task):
    base = methods.base(task).images
    torch.testing.assert_close(methods.finetune(new_lora(task, 0))(task).images, base)
    assert not torch.allclose(methods.finetune(new_lora(task, 0.1))(task).images, base, atol=0.01)
    assert torch.equal(methods.base(task).images, base)


def test_prompt_optimisation_takes_the_wording_that_the_prompt_likes_best(task):
    encode = lambda prompts: encode_prompts(task.pipeline, prompts)  # noqa: E731
    alone = methods.prompt_optimisation({p: [p] for p in PROMPTS}, encode)
    assert torch.allclose(alone(task).images, methods.base(task).images, atol=1e-5)
    texts = {prompt: ["a purple triangle", prompt, "a blue circle"] for prompt in PROMPTS}
    texts[PROMPTS[0]] = ["a purple triangle", PROMPTS[0]]  # their numbers may differ
    made = methods.prompt_optimisation(texts, encode)(task).images
    for row, prompt in enumerate(PROMPTS):
        images = torch.cat(
            [
                generate(task.pipeline, [text], seeds=[task.seeds[row]], height=64, width=64).images
                for text in texts[prompt]
            ]
        )
        rewards = task.rewards.score(images, [prompt] * len(images))
        assert torch.allclose(made[row], images[rewards.argmax()], atol=1e-4)


def test_f_squared_is_that_of_the_hypernetworks_output(task, hypernetwork):
    result = methods.measure(task, methods.hypernoise(hypernetwork))
    delta = task.generate(hypernetwork).delta
    assert torch.allclose(result.f_squared, noise_penalty(delta))
    assert (result.f_squared > 0).all()
    assert methods.measure(task, methods.base).f_squared is None
    instead = load_adapter(EMBEDDED_ADAPTER)
    instead.metadata = replace(instead.metadata, replaces_noise=True)
    replaced = methods.measure(task, methods.hypernoise(instead))
    torch.testing.assert_close(replaced.f_squared, result.f_squared, rtol=1e-4, atol=0)
    assert not torch.allclose(replaced.images, result.images, atol=0.01)


# Wordings


def test_a_caption_is_paraphrased_under_every_prefix():
    assert wordings.paraphrase("a photo of two red circles") == [
        "a photo of two red circles",
        "two red circles",
        "a picture of two red circles",
        "a drawing of two red circles",
    ]
    with pytest.raises(ValueError, match="no caption"):
        wordings.paraphrase("a cat")


def answering(tmp_path: Path, body: str) -> str:
    script = tmp_path / "answer.py"
    script.write_text(f"import json, sys\nlines = [json.loads(l) for l in sys.stdin]\n{body}")
    return f"{sys.executable} {script}"


def test_a_command_answers_wordings_line_by_line(tmp_path):
    body = """for line in lines:
    text = line["prompt"]
    print(json.dumps({"candidates": [text, text + ", sharp", "  déjà vu  "]}))"""
    answer = wordings.ask_command(answering(tmp_path, body), ["a cat", "ein Bär"])
    assert answer == {
        "a cat": ["a cat", "a cat, sharp", "déjà vu"],
        "ein Bär": ["ein Bär", "ein Bär, sharp", "déjà vu"],
    }


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("print('{\"candidates\": []}')", "1 lines to 2 prompts"),
        ("print('yes')\nprint('no')", "line 1 of what"),
        ("print('{\"candidates\": [1]}')\nprint('{\"candidates\": []}')", "line 1 of what"),
        ('print(\'{"candidates": []}\')\nprint(\'{"candidates": [" "]}\')', "line 2 of what"),
        ("sys.exit(3)", "ended with code 3"),
    ],
)
def test_a_command_that_answers_otherwise_is_refused(tmp_path, body, message):
    with pytest.raises(ValueError, match=message):
        wordings.ask_command(answering(tmp_path, body), ["a cat", "a dog"])


def test_a_command_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no-such-command"):
        wordings.ask_command("no-such-command --x", ["a cat"])


def test_wordings_are_asked_for_again_where_another_command_gives_them(tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\n")
    config = EvaluationConfig(
        task=str(tmp_path / "prompts.txt"),
        methods=("prompt_optimisation",),
        out=tmp_path / "out",
    )
    for text in ("a lion", "a tiger"):
        body = f"print(json.dumps({{'candidates': ['{text}']}}))"
        (folder := tmp_path / text).mkdir()
        command = answering(folder, body).replace(text, f"'{text}'")
        questions = ask(replace(config, prompt_command=command), join())
        assert questions.wordings.by_prompt == {"a cat": ["a cat", text]}


# Metrics


def test_an_interval_covers_the_true_mean_although_images_of_a_prompt_are_alike():
    rng = np.random.default_rng(0)
    covered, trials = 0, 150
    for _ in range(trials):
        of_prompt = rng.normal(size=30)
        values = (of_prompt[:, None] + 0.3 * rng.normal(size=(30, 4))).ravel()
        found = metrics.mean(list(values), [str(i // 4) for i in range(120)])
        covered += found.low < 0 < found.high
    # Drawn image by image, about 70% would be covered.
    assert 0.88 * trials <= covered <= trials


def test_an_interval_holds_95_percent():
    """1.96 standard errors on either side, as the normal distribution has it."""
    values = np.random.default_rng(1).normal(3, 2, size=400)
    found = metrics.mean(list(values), list(map(str, range(400))))
    half = 1.96 * values.std() / 400**0.5
    assert found.value - found.low == pytest.approx(half, rel=0.05)
    assert found.high - found.value == pytest.approx(half, rel=0.05)


def test_strata_weigh_the_same_whatever_their_size():
    values, strata = [1.0, 1.0, 1.0, 0.0], ["many", "many", "many", "one"]
    found = metrics.mean(values, ["a", "b", "c", "d"], strata)
    assert found.value == 0.5
    assert (found.low, found.high) == (0.5, 0.5)  # drawn within each stratum


def test_a_single_prompt_has_no_interval():
    found = metrics.mean([1.0, 3.0], ["a", "a"])
    assert found.value == 2.0 and math.isnan(found.low) and math.isnan(found.high)
    with pytest.raises(ValueError, match="0 values"):
        metrics.mean([], [])


def test_the_kl_of_the_best_of_n_is_that_of_its_density():
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    for n in (1, 2, 8, 50):
        density = n * u ** (n - 1)  # of the best one's rank among all draws
        assert metrics.best_of_kl(n) == pytest.approx(
            float((density * density.log()).mean()), abs=1e-3
        )


def test_the_recovered_share_is_unknown_without_a_gain():
    assert metrics.share_recovered(1.0, 1.5, 2.0) == 0.5
    assert metrics.share_recovered(1.0, 0.5, 2.0) == -0.5
    assert metrics.share_recovered(1.0, 1.5, 1.0) is None
    assert metrics.share_recovered(1.0, 0.8, 0.5) is None  # it loses, and so does the best


@pytest.fixture
def alexnet(tmp_path, monkeypatch) -> Path:
    """AlexNet with random weights where torchvision looks for the published ones."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = perceptual.weights_file()
    assert perceptual.load_lpips() is None and file.is_relative_to(tmp_path)
    file.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(torchvision.models.alexnet().state_dict(), file)
    return file


@pytest.mark.slow
def test_lpips_is_the_diversity_where_its_weights_are(alexnet, folder, tmp_path):
    lpips = perceptual.load_lpips()
    images = torch.rand(3, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert lpips.diversity(images[:1].expand(3, -1, -1, -1, -1)) == pytest.approx(0, abs=1e-6)
    assert lpips.diversity(images[:1]) is None
    near = torch.stack([images[0], 0.9 * images[0] + 0.1 * images[1]])
    far = lpips.diversity(images[:2])
    assert 0 < lpips.diversity(near) < far
    # The mean over all pairs, whatever the batches.
    pairs = [lpips.diversity(images[[a, b]]) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert lpips.diversity(images, batch_size=1) == pytest.approx(np.mean(pairs), rel=1e-5)
    assert pairs[0] == far
    of_minus_1_to_1 = learned_perceptual_image_patch_similarity(
        *(2 * images[:2] - 1), net_type="alex"
    )
    assert far == pytest.approx(float(of_minus_1_to_1), rel=1e-5)

    changes = {"methods": ("base",), "steps": (1,), "ablation": (), "lora": ()}
    page = evaluate(settings_of(folder, **changes, out=tmp_path / "out"))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    cells_of = tmp_path / "out" / "cells" / "steps_01" / "base"
    files = [cells_of / f"run_0_seed_{seed}_part_0.json" for seed in (0, 1)]
    made = torch.stack([cells.read_tensors_of(file)[cells.VIEWS] for file in files])
    assert report["steps"]["1"]["base"]["diversity"] == pytest.approx(lpips.diversity(made))
    assert "LPIPS (AlexNet)" in page.read_text()
    # Cells without it are not mixed in.
    with pytest.raises(ValueError, match="belongs to another evaluation: lpips was None"):
        evaluate(settings_of(folder))


def test_diversity_is_0_for_copies_and_largest_for_opposites():
    e = torch.eye(4)
    assert metrics.diversity(torch.stack([e, e, e])) == pytest.approx(0)
    assert metrics.diversity(torch.stack([e, e.flip(0)])) == pytest.approx(1)
    assert metrics.diversity(torch.stack([e, -e])) == pytest.approx(2)
    assert metrics.diversity(e[None]) is None
    black = torch.zeros(1, 2, 3, metrics.SMALL, metrics.SMALL)
    assert metrics.pixel_diversity(torch.cat([black, black + 1])) == pytest.approx(1)
    assert metrics.pixel_diversity(torch.cat([black, black + 0.5])) == pytest.approx(0.5)
    # Pairs: black and black 0, twice black and white 1.
    assert metrics.pixel_diversity(torch.cat([black, black, black + 1])) == pytest.approx(2 / 3)


def test_features_are_those_of_the_first_clip(task):
    images = methods.base(task).images
    encoder = metrics.image_encoder(task.rewards)
    features = metrics.image_features(encoder, images, batch_size=2)
    cosine = (features * encoder.text_features(PROMPTS)).sum(-1)
    assert torch.allclose(cosine * encoder.scale, task.scores(images)["tiny-preference"], atol=1e-3)
    assert metrics.image_encoder(load_rewards({"redness": 1.0})) is None


# Cells


def test_every_image_has_a_noise_of_its_own():
    """Also among the candidates that best-of-50 draws for another image."""
    seeds = [
        noise_seed(number, seed) + candidate * methods._CANDIDATE_STRIDE
        for number in range(300)
        for seed in range(4)
        for candidate in range(50)
    ]
    assert len(set(seeds)) == len(seeds)


def new_cell(cost: int, seed: int) -> cells.Cell:
    return cells.Cell("base", 1, 0, seed, 0, (0, 1), cost)


def test_work_is_shared_out_once_and_evenly_and_keeps_its_order():
    work = [new_cell(cost, i) for i, cost in enumerate([1, 100, 2, 60, 50, 3])]
    shares = cells.share_out(work, 2)
    assert sorted(cell.seed for share in shares for cell in share) == list(range(6))
    assert {sum(cell.cost for cell in share) for share in shares} == {106, 110}
    assert all([c.seed for c in share] == sorted(c.seed for c in share) for share in shares)
    assert cells.share_out(work, 1) == [work]
    assert cells.share_out(work[:1], 3) == [work[:1], [], []]


def test_a_cell_of_another_evaluation_or_a_damaged_one_is_named(tmp_path):
    file = tmp_path / "cell.json"
    identity = {"model": "tiny-sprint", "prompts": "abc"}
    result = cells.CellResult(
        identity=identity,
        seconds_per_image=[0.1],
        forward_passes=1.0,
        backward_passes=0.0,
        total=[1.0, 2.0],
        scores={"redness": [1.0, 2.0]},
        correct=None,
        f_squared=None,
    )
    assert cells.read_cell(file, identity) is None
    images = torch.rand(2, 3, 4, 4)
    cells.write_cell(file, result, {cells.SHOWN: cells.as_bytes(images)})
    assert cells.read_cell(file, identity) == result
    assert torch.allclose(cells.read_tensors_of(file)[cells.SHOWN], images, atol=1 / 255)
    with pytest.raises(ValueError, match="prompts was 'abc' and is 'abd'"):
        cells.read_cell(file, {**identity, "prompts": "abd"})
    file.write_text(file.read_text()[:-20])
    with pytest.raises(ValueError, match="cell.json is damaged"):
        cells.read_cell(file, identity)


def test_a_cell_is_done_when_all_of_it_is_written(tmp_path):
    file = tmp_path / "cell.json"
    result = cells.CellResult({}, [0.1], 1.0, 0.0, [1.0], {"redness": [1.0]}, None, None)
    file.with_suffix(".safetensors").mkdir()  # so that nothing can be written there
    with pytest.raises(OSError):
        cells.write_cell(file, result, {cells.SHOWN: torch.zeros(1, 3, 4, 4)})
    assert cells.read_cell(file, {}) is None


# The whole

ALL = set(catalogue.METHODS)
SMALL_RUN = {
    "max_prompts": 8,
    "seeds": 2,
    "steps": (1, 2),
    "search_prompts": 2,
    "multi_step_search_prompts": 1,
    "batch_size": 4,
    "kl_noises": 1,
}


def as_flags(settings: dict) -> list[str]:
    flags = []
    for name, value in settings.items():
        values = value if isinstance(value, tuple) else (value,)
        flags += [f"--{name}", *map(str, values)]
    return flags


def run(*arguments: str, processes: int = 1) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "hypernoise.training.cli"]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
        command = [sys.executable, *launcher, str(processes), "-m", "hypernoise.training.cli"]
    return subprocess.run(
        [*command, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200", "HF_HUB_OFFLINE": "1"},
    )


@pytest.fixture(scope="module")
def folder(task, tmp_path_factory) -> Path:
    """All methods on 8 captions, as people run it."""
    folder = tmp_path_factory.mktemp("evaluation")
    lora = save_generator_lora(new_lora(task, 0.1), folder / "lora.safetensors")
    files = {"lora": lora, "ablation": ablation_of(folder), "cache_dir": folder / "cache"}
    result = run("evaluate", *as_flags(SMALL_RUN | files | {"out": folder / "out"}))
    assert result.returncode == 0, result.stderr
    assert str(folder / "out" / "report.html") in result.stdout
    return folder


def ablation_of(folder: Path) -> tuple[str, ...]:
    return f"rank_16={EMBEDDED_ADAPTER}", f"lora_1={folder / 'lora.safetensors'}"


def settings_of(folder: Path, **changes) -> EvaluationConfig:
    settings = {
        "lora": (folder / "lora.safetensors",),
        "ablation": ablation_of(folder),
        "cache_dir": folder / "cache",
        "out": folder / "out",
    }
    return EvaluationConfig(**(SMALL_RUN | settings | changes))


def report_of(folder: Path) -> dict:
    return json.loads((folder / "out" / "report.json").read_text())


@pytest.mark.slow
def test_an_evaluation_measures_all_methods_on_the_same_prompts_and_noises(folder):
    report = report_of(folder)
    assert set(report["steps"]) == {"1", "2"}
    assert set(report["steps"]["1"]) == ALL
    assert set(report["steps"]["2"]) == ALL - {"best_of_50", "reno_50"}
    for steps, table in report["steps"].items():
        for name, entry in table.items():
            prompts = {"1": 2, "2": 1}[steps] if catalogue.METHODS[name].searches else 8
            assert (entry["images"], entry["prompts"]) == (2 * prompts, prompts)
            assert entry["checker_mean"] == pytest.approx(np.mean(list(entry["checker"].values())))
            if prompts > 1:
                assert entry["reward_ci"][0] <= entry["reward_mean"] <= entry["reward_ci"][1]
            assert entry["seconds_per_image"] > 0
            assert 0 < entry["diversity"] < 1 and 0 < entry["pixel_diversity"] < 1
            assert (entry["f_squared"] is None) == (name != "hypernoise")
    one, two = report["steps"]["1"], report["steps"]["2"]
    passes = {name: entry["network_evaluations"] for name, entry in one.items()}
    assert passes == {
        "base": 1,
        "hypernoise": 2,
        "hypernoise_reno5": 12,
        "best_of_8": 8,
        "best_of_50": 50,
        "reno_50": 101,
        "finetune": 1,
        "prompt_optimisation": 4,
    }
    assert two["base"]["network_evaluations"] == 2 and two["hypernoise"]["forward_passes"] == 3
    assert one["best_of_50"]["reward_gain"] >= one["best_of_8"]["reward_gain"] >= 0
    assert one["prompt_optimisation"]["reward_gain"] >= -1e-3
    assert one["base"]["kl"] == 0 and one["hypernoise"]["kl"] > one["best_of_50"]["kl"] > 1
    assert one["base"]["reward_gain"] == 0 and one["base"]["win_rate"] == 0.5
    assert one["finetune"]["reward_gain"] < 0 < one["hypernoise"]["reward_gain"]
    # The same adapters as the methods' own.
    for name, method in (("rank_16", "hypernoise"), ("lora_1", "finetune")):
        entry = report["ablation"][name]
        assert (entry["kind"], entry["reward_mean"]) == (method, one[method]["reward_mean"])
    assert report["at_our_reward"] == {"lora": None}  # it loses in reward


@pytest.mark.slow
def test_shares_compare_the_prompts_that_reno_ran_on(folder):
    report = report_of(folder)
    stored = {}
    for method in ("base", "hypernoise", "reno_50"):
        stored[method] = []
        for seed in (0, 1):
            file = folder / "out" / "cells" / "steps_01" / method / f"run_0_seed_{seed}_part_0.json"
            totals = json.loads(file.read_text())["total"]
            # With 2 of 8 prompts at equal distances these are the first and the fifth.
            stored[method] += totals if len(totals) == 2 else [totals[0], totals[4]]
    base, ours, reno = (np.mean(stored[name]) for name in ("base", "hypernoise", "reno_50"))
    share = (ours - base) / (reno - base)
    assert report["recovered_share"]["reward"] == pytest.approx(share)
    assert report["recovered_share"]["steps"] == 1
    assert report["steps"]["1"]["reno_50"]["recovered_share"]["reward"] == pytest.approx(1)


@pytest.mark.slow
def test_the_page_opens_offline_and_shows_tables_plots_and_grids(folder):
    page = (folder / "out" / "report.html").read_text()
    assert "://" not in page
    assert page.count("data:image/png;base64,") == 3 and page.count("data:image/jpeg;base64,") == 3
    for text in ("One generator step", "2 generator steps", "Ablation", "Did the distribution"):
        assert f"<h2>{text}" in page
    assert Image.open(folder / "out" / "methods.jpg").width > 500
    markdown = (folder / "out" / "report.md").read_text()
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert any(line.startswith("| **+ HyperNoise** |") for line in lines)
    assert len({line.count("|") for line in lines[: 2 + len(ALL)]}) == 1


@pytest.mark.slow
def test_a_rerun_does_only_what_is_missing_and_refuses_other_settings(folder):
    before = report_of(folder)
    files = sorted((folder / "out" / "cells").rglob("*.json"))
    gone = folder / "out" / "cells" / "steps_02" / "hypernoise" / "run_0_seed_1_part_0.json"
    gone.unlink()
    times = {file: file.stat().st_mtime_ns for file in files if file != gone}
    evaluate(settings_of(folder))
    assert gone.is_file() and sorted((folder / "out" / "cells").rglob("*.json")) == files
    assert {file: file.stat().st_mtime_ns for file in times} == times
    after = report_of(folder)
    ours = [report["steps"]["2"]["hypernoise"]["reward_mean"] for report in (before, after)]
    assert ours[0] == pytest.approx(ours[1], rel=1e-5)
    with pytest.raises(ValueError, match="belongs to another evaluation: .*rewards was"):
        evaluate(settings_of(folder, rewards="tiny-preference=2"))


@pytest.mark.slow
def test_large_cells_are_split_into_parts_of_whole_batches(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "_LARGEST_CELL", 6)
    evaluate(settings_of(folder, methods=("hypernoise",), steps=(1,), ablation=(), out=tmp_path))
    parts = sorted(path.name for path in (tmp_path / "cells" / "steps_01" / "base").glob("*.json"))
    assert parts == [f"run_0_seed_{seed}_part_{part}.json" for seed in (0, 1) for part in (0, 1)]
    report = json.loads((tmp_path / "report.json").read_text())
    for method in ("base", "hypernoise"):
        entry, whole = (r["steps"]["1"][method] for r in (report, report_of(folder)))
        for name in ("reward_mean", "checker_mean", "diversity", "pixel_diversity", "kl"):
            assert entry[name] == pytest.approx(whole[name], rel=1e-4)
    assert Image.open(tmp_path / "methods.jpg").width > 100


@pytest.mark.slow
def test_processes_share_the_cells_and_runs_are_averaged(folder, tmp_path):
    settings = {
        "methods": ("base", "hypernoise"),
        "adapter": (EMBEDDED_ADAPTER, EMBEDDED_ADAPTER),
        "steps": (1,),
        "cache_dir": folder / "cache",
        "out": tmp_path,
    }
    result = run("evaluate", *as_flags(SMALL_RUN | settings), processes=2)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["settings"]["processes"] == 2
    entry, alone = report["steps"]["1"]["hypernoise"], report_of(folder)["steps"]["1"]["hypernoise"]
    assert len(entry["runs"]) == 2 and entry["images"] == 32
    for name in ("reward_mean", "reward_gain", "win_rate", "checker_mean", "diversity"):
        assert entry[name] == pytest.approx(alone[name], rel=1e-3)
    assert report["recovered_share"] is None


def test_prompts_that_are_no_captions_have_no_checker(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\nthe number seven\ntwo circles\n")
    page = evaluate(
        EvaluationConfig(
            task=str(tmp_path / "prompts.txt"),
            methods=("hypernoise",),
            steps=(1,),
            seeds=1,
            rewards="redness",
            kl_noises=0,
            cache_dir=tmp_path / "cache",
            out=tmp_path / "out",
        )
    )
    table = json.loads((page.parent / "report.json").read_text())["steps"]["1"]
    assert set(table) == {"base", "hypernoise"}  # what it is compared with is always there
    entry = table["hypernoise"]
    unknown = ("checker_mean", "checker_ci", "diversity", "pixel_diversity", "kl")
    assert all(entry[name] is None for name in unknown) and entry["checker"] == {}
    assert "checker" not in (page.parent / "report.md").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": ("magic",)}, "unknown method 'magic', choose from base"),
        ({"methods": ("finetune",)}, "give --lora"),
        ({"model": "sana"}, "--adapter FILE"),
        ({"model": "sana", "methods": ("hypernoise",)}, "--adapter FILE"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"steps": (0,)}, "steps start at 1"),
        ({"ablation": ("rank_8",)}, "NAME=FILE"),
        ({"ablation": ("a/b=c",)}, "NAME=FILE"),
        ({"layout": "geneval"}, "--data_dir"),
        ({"kl_noises": -1}, "kl_noises"),
    ],
)
def test_settings_that_cannot_run_are_refused_at_once(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        EvaluationConfig(**settings)


def test_default_methods_are_those_that_can_run():
    assert EvaluationConfig().chosen_methods(wordings=True) == tuple(
        name for name in catalogue.METHODS if name != "finetune"
    )
    assert "prompt_optimisation" not in EvaluationConfig().chosen_methods(wordings=False)
    config = EvaluationConfig(methods=("prompt_optimisation",))
    with pytest.raises(ValueError, match="--prompt_command"):
        config.chosen_methods(wordings=False)
    layout = EvaluationConfig(layout="geneval", data_dir=Path("x"))
    assert layout.chosen_methods(wordings=True) == ("base", "hypernoise")


# Benchmarks


@pytest.fixture(scope="module")
def checkouts(tmp_path_factory) -> dict[str, Path]:
    """Made-up prompts in the files of each benchmark."""
    root = tmp_path_factory.mktemp("checkouts")
    lines = [
        {"tag": "single_object", "include": [{"class": "circle"}], "prompt": "a red circle"},
        {"tag": "counting", "include": [{"class": "square", "count": 2}], "prompt": PROMPTS[1]},
        {"tag": "position", "prompt": PROMPTS[2]},
    ]
    texts = {
        "geneval/prompts/evaluation_metadata.jsonl": "".join(json.dumps(x) + "\n" for x in lines),
        "T2I-CompBench/examples/dataset/color_val.txt": "a red circle\ntwo blue squares\tseen\n",
        "T2I-CompBench/examples/dataset/shape_val.txt": "a circle\n",
        "T2I-CompBench/examples/dataset/shape_train.txt": "a square\n",
        "dpg_bench/prompts/12.txt": "a red circle",
        "dpg_bench/prompts/COCOval_3.txt": "two blue squares\n",
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return {
        "geneval": root / "geneval",  # the checkout itself
        "t2i-compbench": root,  # the folder around it
        "dpg-bench": root / "dpg_bench",
    }


def images_of(checkouts, layout: str, out: Path, **changes) -> Path:
    """The folder of base."""
    settings = {"methods": ("base",), "seeds": 4} | changes
    config = EvaluationConfig(layout=layout, data_dir=checkouts[layout], out=out, **settings)
    return write_layout(config)[0]


def files_in(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1) / 255


def test_geneval_gets_its_metadata_and_the_images_of_each_prompt(checkouts, tmp_path, task):
    folder = images_of(checkouts, "geneval", tmp_path)
    numbers = [f"{number:05d}" for number in range(3)]
    assert files_in(folder) == sorted(
        [f"{number}/samples/{image:04d}.png" for number in numbers for image in range(4)]
        + [f"{number}/metadata.jsonl" for number in numbers]
    )
    metadata = json.loads((folder / "00001" / "metadata.jsonl").read_text())
    assert metadata["prompt"] == PROMPTS[1] and metadata["include"][0]["count"] == 2
    image = generate(task.pipeline, [PROMPTS[1]], seeds=[noise_seed(1, 3)]).images[0]
    written = pixels(folder / "00001" / "samples" / "0003.png")
    assert torch.allclose(written, image, atol=0.01)


def test_a_layout_goes_on_where_it_was_and_refuses_other_settings(checkouts, tmp_path):
    whole = images_of(checkouts, "geneval", tmp_path / "whole")
    folder = images_of(checkouts, "geneval", tmp_path / "cut", max_prompts=2)
    assert {name.split("/")[0] for name in files_in(folder)} == {"00000", "00001"}
    (folder / "00001" / "samples" / "0002.png").unlink()
    kept = folder / "00000" / "samples" / "0000.png"
    before = kept.stat().st_mtime_ns
    images_of(checkouts, "geneval", tmp_path / "cut")
    assert kept.stat().st_mtime_ns == before
    assert files_in(folder) == files_in(whole)
    for name in files_in(whole):
        if name.endswith(".png"):
            assert torch.allclose(pixels(folder / name), pixels(whole / name), atol=0.01)
    with pytest.raises(ValueError, match="other settings"):
        images_of(checkouts, "geneval", tmp_path / "cut", precision="bfloat16")


def test_images_of_a_part_of_a_layout_s_prompts_are_those_of_the_whole(tmp_path, task):
    file = tmp_path / "prompts" / "evaluation_metadata.jsonl"
    file.parent.mkdir()
    prompts = ["a red circle", "a blue square", "a white triangle", "a circle"]
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    settings = {"seeds": 1, "max_prompts": 2}
    folder = images_of({"geneval": tmp_path}, "geneval", tmp_path / "out", **settings)
    image = generate(task.pipeline, prompts[2:3], seeds=[noise_seed(2, 0)]).images[0]
    written = pixels(folder / "00002" / "samples" / "0000.png")
    assert torch.allclose(written, image, atol=0.01)


def test_a_layout_s_images_of_another_adapter_are_not_gone_on_with(checkouts, tmp_path):
    adapter = load_adapter(EMBEDDED_ADAPTER)
    with torch.no_grad():
        next(iter(adapter.branches.values())).up.mul_(2)
    other = save_adapter(adapter, tmp_path / "other.safetensors")
    settings = {"methods": ("hypernoise",), "seeds": 1, "max_prompts": 1}
    images_of(checkouts, "geneval", tmp_path / "out", **settings)
    with pytest.raises(ValueError, match="other settings"):
        images_of(checkouts, "geneval", tmp_path / "out", **settings, adapter=(other,))


def change_weights(model: Path) -> None:
    """In place, as a download of another version does it."""
    file = model / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = {name: t * 1.1 if t.ndim == 2 else t for name, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of tiny-sprint."""
    return Path(shutil.copytree(ASSETS / "tiny-sprint", tmp_path / "model"))


def test_a_layout_s_images_of_other_weights_or_prompts_are_not_gone_on_with(model, tmp_path):
    file = tmp_path / "checkout" / "prompts" / "evaluation_metadata.jsonl"
    file.parent.mkdir(parents=True)
    lines = [{"prompt": "a red circle", "tag": "x"}, {"prompt": "a blue square", "tag": "x"}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    checkouts, settings = {"geneval": tmp_path / "checkout"}, {"model": str(model), "seeds": 1}
    images_of(checkouts, "geneval", tmp_path / "out", **settings)
    images_of(checkouts, "geneval", tmp_path / "out", **settings)
    lines[1]["tag"] = "y"  # part of what is written beside the images
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match="other settings"):
        images_of(checkouts, "geneval", tmp_path / "out", **settings)
    images_of(checkouts, "geneval", tmp_path / "second", **settings)
    change_weights(model)
    with pytest.raises(ValueError, match="other settings"):
        images_of(checkouts, "geneval", tmp_path / "second", **settings)


def test_an_evaluation_s_cells_of_other_weights_are_not_taken_over(model, tmp_path):
    config = EvaluationConfig(
        model=str(model), task=str(tmp_path / "prompts.txt"), adapter=(EMBEDDED_ADAPTER,),
        rewards="redness", precision="float32", image_size=64, methods=("base",), steps=(1,),
        seeds=1, kl_noises=0, cache_dir=tmp_path / "cache", out=tmp_path / "out",
    )  # fmt: skip
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    evaluate(config)
    copy = shutil.copytree(model, tmp_path / "copy")
    evaluate(replace(config, model=str(copy)))  # the same content: nothing is done again
    change_weights(model)
    with pytest.raises(ValueError, match="another evaluation: model_content was .* and is"):
        evaluate(config)


def test_geneval_s_lines_end_where_lines_end(tmp_path):
    file = tmp_path / "prompts" / "evaluation_metadata.jsonl"
    file.parent.mkdir()
    file.write_bytes('\ufeff{"prompt": "a\u2028b"}\r\n\r\n{"prompt": "c"}\r\n'.encode())
    items = layouts.geneval(tmp_path, 1)
    assert [item.prompt for item in items] == ["a\u2028b", "c"]
    assert items[0].texts == {"00000/metadata.jsonl": '{"prompt": "a\u2028b"}\n'}
    for text, message in (
        ('{"prompt": "a"}\n{"prompt": " \u200b"}\n', "line 2: the prompt is empty"),
        ('{"prompt": "a"}\n{"tag": "b"}\n', "line 2: this is no object with a prompt"),
        ('{"prompt": "a"}\n["b"]\n', "line 2: this is no object with a prompt"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            layouts.geneval(tmp_path, 1)


def test_t2i_compbench_gets_the_prompt_in_the_name_and_a_running_number(checkouts, tmp_path):
    folder = images_of(checkouts, "t2i-compbench", tmp_path, seeds=2)
    assert files_in(folder) == [
        "color_val/samples/a red circle_000000.png",
        "color_val/samples/a red circle_000001.png",
        "color_val/samples/two blue squares_000002.png",
        "color_val/samples/two blue squares_000003.png",
        "shape_val/samples/a circle_000000.png",
        "shape_val/samples/a circle_000001.png",
    ]


def test_dpg_bench_gets_four_images_in_one(checkouts, tmp_path, task):
    folder = images_of(checkouts, "dpg-bench", tmp_path)
    assert files_in(folder) == ["12.png", "COCOval_3.png"]
    grid = pixels(folder / "COCOval_3.png")
    seeds = [noise_seed(1, seed) for seed in range(4)]
    images = generate(task.pipeline, ["two blue squares"] * 4, seeds=seeds).images
    # The benchmark's code cuts the grid line by line.
    corners = [(0, 0), (0, 64), (64, 0), (64, 64)]
    for (top, left), image in zip(corners, images, strict=True):
        part = grid[:, top : top + 64, left : left + 64]
        assert torch.allclose(part, image, atol=0.01)
    with pytest.raises(ValueError, match="--seeds 4, not 2"):
        images_of(checkouts, "dpg-bench", tmp_path, seeds=2)


def test_methods_that_search_write_layouts_too(checkouts, tmp_path):
    command = answering(
        tmp_path, 'for line in lines:\n    print(json.dumps({"candidates": ["a green square"]}))'
    )
    methods = ("best_of_8", "prompt_optimisation", "hypernoise")
    config = EvaluationConfig(
        layout="dpg-bench",
        data_dir=checkouts["dpg-bench"],
        methods=methods,
        seeds=1,
        prompt_command=command,
        out=tmp_path / "out",
    )
    folders = write_layout(config)
    assert [folder.name for folder in folders] == [
        "hypernoise_steps_1",
        "best_of_8_steps_1",
        "prompt_optimisation_steps_1",
    ]
    assert all(files_in(folder) == ["12.png", "COCOval_3.png"] for folder in folders)


def test_a_checkout_without_prompts_is_named(checkouts, tmp_path):
    for name, layout in layouts.LAYOUTS.items():
        with pytest.raises(FileNotFoundError, match="looked for"):
            layout(tmp_path / name, 4)
    with pytest.raises(ValueError, match="part of a file's name"):
        file = tmp_path / "examples" / "dataset" / "color_val.txt"
        file.parent.mkdir(parents=True)
        file.write_text("a red/green circle\n")
        layouts.t2i_compbench(tmp_path, 4)


# Cards


def front_matter(card: str) -> dict:
    _, facts, _ = card.split("---\n", 2)
    return yaml.safe_load(facts)


@pytest.mark.slow
def test_a_card_holds_the_facts_of_the_adapter_and_the_tables_of_its_report(folder, tmp_path):
    out = tmp_path / "my-hypernetwork" / "README.md"
    result = run("card", str(EMBEDDED_ADAPTER), "--report", str(folder / "out" / "report.json"),
                 "--out", str(out))  # fmt: skip
    assert result.returncode == 0, result.stderr
    card = out.read_text()
    facts = front_matter(card)
    assert facts["pipeline_tag"] == "text-to-image" and "hypernoise" in facts["tags"]
    assert "base_model" not in facts  # the embedded generator is on no hub
    (index,) = facts["model-index"]
    assert index["name"] == "my-hypernetwork"
    reward = report_of(folder)["steps"]["1"]["hypernoise"]["reward_mean"]
    values = {metric["type"]: metric["value"] for metric in index["results"][0]["metrics"]}
    assert values["mean_reward"] == pytest.approx(reward, abs=1e-3)
    assert "| rank, alpha | 16, 32 |" in card and "1 x tiny-preference" in card
    assert (folder / "out" / "report.md").read_text().strip() in card


def test_a_card_without_a_report_names_the_generator_of_the_hub(tmp_path):
    hypernetwork = load_adapter(EMBEDDED_ADAPTER)
    hypernetwork.metadata = replace(hypernetwork.metadata, base_model="sana")
    path = save_adapter(hypernetwork, tmp_path / "adapter.safetensors")
    card = write_card(path, tmp_path / "README.md").read_text()
    facts = front_matter(card)
    assert facts["base_model"] == "Efficient-Large-Model/Sana_Sprint_0.6B_1024px_diffusers"
    assert "model-index" not in facts and "## Evaluation" not in card
    code = re.search(r"```python\n(.*?)```", card, re.S)[1]
    compile(code, "card", "exec")
    for line in code.splitlines():
        if line.startswith("from hypernoise"):
            _, module, _, name = line.split()
            assert hasattr(importlib.import_module(module), name)


def test_a_card_of_a_lora_on_the_generator_says_so(tmp_path, task):
    path = save_generator_lora(new_lora(task, 0.1), tmp_path / "lora.safetensors")
    card = write_card(path, tmp_path / "README.md").read_text()
    assert "# SANA-Sprint reward LoRA" in card and "load_lora_weights" in card
    assert "hypernoise" not in front_matter(card)["tags"]


def test_a_file_that_is_no_report_is_named(tmp_path):
    (tmp_path / "report.json").write_text('{"methods": {}}')
    with pytest.raises(ValueError, match="it has no steps"):
        write_card(EMBEDDED_ADAPTER, tmp_path / "README.md", tmp_path / "report.json")
    with pytest.raises(FileNotFoundError, match="there is no report"):
        write_card(EMBEDDED_ADAPTER, tmp_path / "README.md", tmp_path / "gone.json")
    assert not (tmp_path / "README.md").exists()
