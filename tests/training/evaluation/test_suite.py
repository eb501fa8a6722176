"""A whole evaluation as people run it, and runs that resume it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

from hypernoise.tests.training.evaluation.runs import (
    PROMPTS,
    SMALL_RUN,
    as_flags,
    change_weights,
    report_of,
    settings_of,
)
from hypernoise.tests.warm import hypernoise as run
from hypernoise.training.commands.evaluate import evaluate
from hypernoise.training.embedded_models import EMBEDDED_ADAPTER
from hypernoise.training.evaluation import (
    jobs,
    lpips,
    method_table,
    suite,
)
from hypernoise.training.evaluation.settings import EvaluationConfig

ALL = set(method_table.METHODS)


@pytest.fixture
def alexnet(tmp_path, monkeypatch) -> Path:
    """AlexNet with random weights where torchvision looks for the published ones."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = lpips.weights_file()
    assert lpips.load_lpips() is None and file.is_relative_to(tmp_path)
    file.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(torchvision.models.alexnet().state_dict(), file)
    return file


@pytest.mark.slow
def test_an_evaluation_measures_all_methods_on_the_same_prompts_and_noises(evaluated):
    report = report_of(evaluated)
    assert set(report["steps"]) == {"1", "2"}
    assert set(report["steps"]["1"]) == ALL
    assert set(report["steps"]["2"]) == ALL - {"best_of_50", "reno_50"}
    for steps, table in report["steps"].items():
        for name, entry in table.items():
            prompts = {"1": 2, "2": 1}[steps] if method_table.METHODS[name].searches else 8
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
def test_shares_compare_the_prompts_that_reno_ran_on(evaluated):
    report = report_of(evaluated)
    stored = {}
    for method in ("base", "hypernoise", "reno_50"):
        stored[method] = []
        for seed in (0, 1):
            file = (
                evaluated / "out" / "cells" / "steps_01" / method / f"run_0_seed_{seed}_part_0.json"
            )
            totals = json.loads(file.read_text())["total"]
            # With 2 of 8 prompts at equal distances these are the first and the fifth.
            stored[method] += totals if len(totals) == 2 else [totals[0], totals[4]]
    base, ours, reno = (np.mean(stored[name]) for name in ("base", "hypernoise", "reno_50"))
    share = (ours - base) / (reno - base)
    assert report["recovered_share"]["reward"] == pytest.approx(share)
    assert report["recovered_share"]["steps"] == 1
    assert report["steps"]["1"]["reno_50"]["recovered_share"]["reward"] == pytest.approx(1)


@pytest.mark.slow
def test_the_page_opens_offline_and_shows_tables_plots_and_grids(evaluated):
    page = (evaluated / "out" / "report.html").read_text()
    assert "://" not in page
    assert page.count("data:image/png;base64,") == 3 and page.count("data:image/jpeg;base64,") == 3
    for text in ("One generator step", "2 generator steps", "Ablation", "Did the distribution"):
        assert f"<h2>{text}" in page
    assert Image.open(evaluated / "out" / "methods.jpg").width > 500
    markdown = (evaluated / "out" / "report.md").read_text()
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert any(line.startswith("| **+ HyperNoise** |") for line in lines)
    assert len({line.count("|") for line in lines[: 2 + len(ALL)]}) == 1


@pytest.mark.slow
def test_a_rerun_does_only_what_is_missing_and_refuses_other_settings(evaluated):
    before = report_of(evaluated)
    files = sorted((evaluated / "out" / "cells").rglob("*.json"))
    gone = evaluated / "out" / "cells" / "steps_02" / "hypernoise" / "run_0_seed_1_part_0.json"
    gone.unlink()
    times = {file: file.stat().st_mtime_ns for file in files if file != gone}
    evaluate(settings_of(evaluated))
    assert gone.is_file() and sorted((evaluated / "out" / "cells").rglob("*.json")) == files
    assert {file: file.stat().st_mtime_ns for file in times} == times
    after = report_of(evaluated)
    ours = [report["steps"]["2"]["hypernoise"]["reward_mean"] for report in (before, after)]
    assert ours[0] == pytest.approx(ours[1], rel=1e-5)
    with pytest.raises(ValueError, match="belongs to another evaluation: .*rewards was"):
        evaluate(settings_of(evaluated, rewards="tiny-preference=2"))


@pytest.mark.slow
def test_large_jobs_are_split_into_parts_of_whole_batches(evaluated, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "_LARGEST_JOB", 6)
    evaluate(settings_of(evaluated, methods=("hypernoise",), steps=(1,), ablation=(), out=tmp_path))
    parts = sorted(path.name for path in (tmp_path / "cells" / "steps_01" / "base").glob("*.json"))
    assert parts == [f"run_0_seed_{seed}_part_{part}.json" for seed in (0, 1) for part in (0, 1)]
    report = json.loads((tmp_path / "report.json").read_text())
    for method in ("base", "hypernoise"):
        entry, whole = (r["steps"]["1"][method] for r in (report, report_of(evaluated)))
        for name in ("reward_mean", "checker_mean", "diversity", "pixel_diversity", "kl"):
            assert entry[name] == pytest.approx(whole[name], rel=1e-4)
    assert Image.open(tmp_path / "methods.jpg").width > 100


@pytest.mark.slow
def test_processes_share_the_jobs_and_runs_are_averaged(evaluated, tmp_path):
    settings = {
        "methods": ("base", "hypernoise"),
        "adapter": (EMBEDDED_ADAPTER, EMBEDDED_ADAPTER),
        "steps": (1,),
        "cache_dir": evaluated / "cache",
        "out": tmp_path,
    }
    result = run("evaluate", *as_flags(SMALL_RUN | settings), processes=2)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["settings"]["processes"] == 2
    entry, alone = (
        report["steps"]["1"]["hypernoise"],
        report_of(evaluated)["steps"]["1"]["hypernoise"],
    )
    assert len(entry["runs"]) == 2 and entry["images"] == 32
    for name in ("reward_mean", "reward_gain", "win_rate", "checker_mean", "diversity"):
        assert entry[name] == pytest.approx(alone[name], rel=1e-3)
    assert report["recovered_share"] is None


@pytest.mark.slow
def test_lpips_is_the_diversity_where_its_weights_are(alexnet, evaluated, tmp_path):
    measure = lpips.load_lpips()
    images = torch.rand(3, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert measure.diversity(images[:1].expand(3, -1, -1, -1, -1)) == pytest.approx(0, abs=1e-6)
    assert measure.diversity(images[:1]) is None
    near = torch.stack([images[0], 0.9 * images[0] + 0.1 * images[1]])
    far = measure.diversity(images[:2])
    assert 0 < measure.diversity(near) < far
    # The mean over all pairs, whatever the batches.
    pairs = [measure.diversity(images[[a, b]]) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert measure.diversity(images, batch_size=1) == pytest.approx(np.mean(pairs), rel=1e-5)
    assert pairs[0] == far
    of_minus_1_to_1 = learned_perceptual_image_patch_similarity(
        *(2 * images[:2] - 1), net_type="alex"
    )
    assert far == pytest.approx(float(of_minus_1_to_1), rel=1e-5)

    changes = {"methods": ("base",), "steps": (1,), "ablation": (), "lora": ()}
    page = evaluate(settings_of(evaluated, **changes, out=tmp_path / "out"))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    jobs_of = tmp_path / "out" / "cells" / "steps_01" / "base"
    files = [jobs_of / f"run_0_seed_{seed}_part_0.json" for seed in (0, 1)]
    made = torch.stack([jobs.read_job_tensors(file)[jobs.VIEWS] for file in files])
    assert report["steps"]["1"]["base"]["diversity"] == pytest.approx(measure.diversity(made))
    assert "LPIPS (AlexNet)" in page.read_text()
    # Jobs without it are not mixed in.
    with pytest.raises(ValueError, match="belongs to another evaluation: lpips was None"):
        evaluate(settings_of(evaluated))


@pytest.mark.slow
def test_a_card_holds_the_facts_of_the_adapter_and_the_tables_of_its_report(evaluated, tmp_path):
    out = tmp_path / "my-hypernetwork" / "README.md"
    result = run("card", str(EMBEDDED_ADAPTER), "--report", str(evaluated / "out" / "report.json"),
                 "--out", str(out))  # fmt: skip
    assert result.returncode == 0, result.stderr
    card = out.read_text()
    facts = yaml.safe_load(card.split("---\n", 2)[1])
    assert facts["pipeline_tag"] == "text-to-image" and "hypernoise" in facts["tags"]
    assert "base_model" not in facts  # the embedded generator is on no hub
    (index,) = facts["model-index"]
    assert index["name"] == "my-hypernetwork"
    reward = report_of(evaluated)["steps"]["1"]["hypernoise"]["reward_mean"]
    values = {metric["type"]: metric["value"] for metric in index["results"][0]["metrics"]}
    assert values["mean_reward"] == pytest.approx(reward, abs=1e-3)
    assert "| rank, alpha | 16, 32 |" in card and "1 x tiny-preference" in card
    assert (evaluated / "out" / "report.md").read_text().strip() in card


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
