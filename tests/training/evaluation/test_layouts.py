"""Images in the folders that the benchmarks' own evaluations read."""

import json

import pytest
import torch

from hypernoise.hypernoise_core.adapter import load_adapter, save_adapter
from hypernoise.hypernoise_core.generate import generate
from hypernoise.tests.training.evaluation.runs import (
    PROMPTS,
    answering,
    change_weights,
    files_in,
    images_of,
    pixels,
)
from hypernoise.training.embedded_models import EMBEDDED_ADAPTER
from hypernoise.training.evaluation.layouts import write_layout
from hypernoise.training.evaluation.runner import noise_seed
from hypernoise.training.evaluation.settings import EvaluationConfig


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


def test_a_layout_is_resumed_and_refuses_other_settings(checkouts, tmp_path):
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
        cache_dir=tmp_path / "cache",
        out=tmp_path / "out",
    )
    folders = write_layout(config)
    assert [folder.name for folder in folders] == [
        "hypernoise_steps_1",
        "best_of_8_steps_1",
        "prompt_optimisation_steps_1",
    ]
    assert all(files_in(folder) == ["12.png", "COCOval_3.png"] for folder in folders)
