"""Evaluation in training: pairs on the same noise, honest intervals, and the sign of hacking."""

import math
import random
from dataclasses import replace

import huggingface_hub
import pytest
import torch
from PIL import Image

from hypernoise.hypernoise_core.adapter import load_adapter
from hypernoise.hypernoise_core.generate import encode_prompts, generate
from hypernoise.hypernoise_core.generator_lora import GeneratorLora
from hypernoise.hypernoise_core.hypernetwork import NoiseHypernetwork
from hypernoise.hypernoise_core.rewards import load_rewards
from hypernoise.hypernoise_core.rewards.clip_score import ClipScore
from hypernoise.tests import warm
from hypernoise.tests.rewards import stand_ins
from hypernoise.training.embedded_models import ASSETS
from hypernoise.training.pipelines import load_pipeline
from hypernoise.training.tiny_world.captions import captions_by_category, parse_caption
from hypernoise.training.tiny_world.checker import is_correct
from hypernoise.training.validation.held_out import HeldOut, paired_gain
from hypernoise.training.validation.watch import (
    default_watch,
    get_measure,
    hacking_warning,
)


def make_held_out(count: int = 10, **options) -> HeldOut:
    """Held-out captions of all kinds on tiny-sprint."""
    pipeline = load_pipeline("tiny-sprint")
    rng = random.Random(0)
    pools = list(captions_by_category(held_out=True).values())
    prompts = [rng.choice(pools[i % len(pools)]).text for i in range(count)]
    return HeldOut(
        pipeline=pipeline,
        prompts=prompts,
        conditioning=encode_prompts(pipeline, prompts),
        noise_conditioning=encode_prompts(pipeline, ["a red circle"]),
        seeds=range(900, 900 + count),
        size=(64, 64),
        rewards=load_rewards({"tiny-preference": 1.0, "redness": 2.0}),
        watched=get_measure("checker"),
        **{"batch_size": 4, **options},
    )


@pytest.fixture(scope="module")
def held_out() -> HeldOut:
    return make_held_out()


@pytest.fixture(scope="module")
def adapter() -> NoiseHypernetwork:
    return load_adapter(ASSETS / "tiny-hypernoise.safetensors")


def with_random_branches(adapter):
    """So that it changes something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for branch in adapter.branches.values():
            branch.up.normal_(std=0.05, generator=generator)
    return adapter


def new(held_out: HeldOut, cls=NoiseHypernetwork, **options):
    generator = torch.Generator().manual_seed(0)
    network = held_out.pipeline.transformer
    options = {"rank": 2, "alpha": 4, "generator": generator, **options}
    return cls.initialise(network, "sana_sprint", **options)


def images_of(held_out: HeldOut, adapter=None, **options) -> torch.Tensor:
    return generate(
        held_out.pipeline,
        held_out.prompts,
        adapter,
        seeds=held_out.seeds,
        conditioning=held_out.conditioning,
        **{"height": 64, "width": 64, **options},
    ).images


def total(held_out: HeldOut, images: torch.Tensor) -> float:
    with torch.no_grad():
        return held_out.rewards.score(images, held_out.prompts).mean().item()


def test_a_new_hypernetwork_gains_nothing_for_certain(held_out):
    evaluation = held_out.measure(new(held_out))
    assert set(evaluation.gains) == {
        "evaluation/tiny-preference",
        "evaluation/redness",
        "evaluation/total",
        "watched/checker",
    }
    for gain in evaluation.gains.values():
        assert (gain.mean, gain.low, gain.high, gain.win_rate) == (0, 0, 0, 0.5)
    assert evaluation.f_squared == 0
    rows = evaluation.rows
    assert all(torch.equal(rows["base"], images) for images in rows.values())


def test_the_numbers_are_those_of_the_same_images_made_by_hand(held_out, adapter):
    metrics = held_out.measure(adapter).metrics()
    base, ours = images_of(held_out), images_of(held_out, adapter)
    assert metrics["evaluation/total_base"] == pytest.approx(total(held_out, base), rel=1e-4)
    assert metrics["evaluation/total"] == pytest.approx(total(held_out, ours), rel=1e-4)
    gain = metrics["evaluation/total"] - metrics["evaluation/total_base"]
    assert metrics["evaluation/total_gain"] == pytest.approx(gain, abs=1e-4)
    low, high = metrics["evaluation/total_gain_low"], metrics["evaluation/total_gain_high"]
    assert low < metrics["evaluation/total_gain"] < high
    right = [
        is_correct(image, parse_caption(prompt))
        for image, prompt in zip(ours, held_out.prompts, strict=True)
    ]
    assert metrics["watched/checker"] == pytest.approx(sum(right) / len(right))
    told = held_out.noise_conditioning
    replaced = total(held_out, images_of(held_out, adapter, noise_conditioning=told))
    assert replaced != pytest.approx(metrics["evaluation/total"], abs=0.1)
    assert metrics["evaluation/total_noise_prompt_replaced"] == pytest.approx(replaced, rel=1e-4)
    assert all(isinstance(value, float) for value in metrics.values())


def test_the_size_of_f_is_its_own_where_it_takes_the_noise_s_place(held_out):
    f = with_random_branches(new(held_out))
    added = held_out.measure(f)
    f.metadata = replace(f.metadata, replaces_noise=True)
    instead = held_out.measure(f)
    assert added.f_squared > 0
    assert instead.f_squared == pytest.approx(added.f_squared, rel=1e-4)
    assert not torch.equal(instead.rows["modulated noise"], added.rows["modulated noise"])


def test_a_lora_on_the_generator_is_measured_on_the_plain_noise(held_out):
    nothing = held_out.measure(new(held_out, GeneratorLora))
    lora = with_random_branches(new(held_out, GeneratorLora))
    evaluation = held_out.measure(lora)
    assert nothing.gains["evaluation/total"].mean == pytest.approx(0, abs=1e-5)  # rounding
    assert evaluation.gains["evaluation/total"].mean != 0
    with lora.attached(held_out.pipeline.transformer):
        images = images_of(held_out)
    assert evaluation.gains["evaluation/total"].ours == pytest.approx(
        total(held_out, images), rel=1e-4
    )
    assert list(evaluation.rows) == ["base", "LoRA on the generator"]
    assert not [name for name in evaluation.metrics() if "f_squared" in name or "replaced" in name]


def test_base_images_are_made_once_and_nothing_else_is_touched(adapter):
    held_out = make_held_out(4)
    calls = []
    network = held_out.pipeline.transformer
    handle = network.register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = held_out.measure(adapter)
    after_first = len(calls)
    second = held_out.measure(adapter)
    handle.remove()
    assert (after_first, len(calls) - after_first) == (5, 4)
    assert first.metrics() == second.metrics()
    assert torch.equal(torch.get_rng_state(), state)
    assert not network.proj_out._forward_hooks


def test_training_goes_on_after_an_evaluation(held_out):
    f = new(held_out)
    held_out.measure(f)
    noise, rows = torch.randn(2, 8, 8, 8), slice(0, 2)
    conditioning = {name: tensor[rows] for name, tensor in held_out.conditioning.items()}
    noise = torch.randn(2, *f.family.latent_shape(held_out.pipeline, 64, 64))
    latents = f.family.denoise(
        held_out.pipeline,
        noise + f(held_out.pipeline.transformer, noise, conditioning),
        conditioning,
    )
    images = f.family.decode(held_out.pipeline, latents)
    held_out.rewards.score(images, held_out.prompts[rows]).sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in f.parameters())


def test_pictures_show_the_first_prompts_and_the_noise_only_where_it_is_asked_for(
    held_out, adapter, tmp_path
):
    evaluation = held_out.measure(adapter)
    assert [len(images) for images in evaluation.rows.values()] == [8, 8, 8]
    assert evaluation.prompts == held_out.prompts[:8]
    torch.testing.assert_close(
        evaluation.rows["modulated noise"], images_of(held_out, adapter)[:8], rtol=0, atol=0.01
    )
    (path,) = evaluation.write_pictures(tmp_path, 12).values()
    with Image.open(path) as picture:
        assert picture.width > 8 * 64
        assert picture.height > 3 * 64
    assert path.stat().st_size < 500_000

    with_noise = replace(held_out, viz_noise=True).measure(adapter)
    assert with_noise.rows.keys() == evaluation.rows.keys()
    paths = list(with_noise.write_pictures(tmp_path, 12).values())
    assert paths[0] == path
    assert len(paths) == 2
    noise, f, modulated = with_noise.noise_rows.values()
    assert noise.shape == f.shape == modulated.shape == (8, 3, 64, 64)
    assert not torch.equal(noise, modulated)


@pytest.mark.filterwarnings("error")
def test_prompts_of_any_text_can_be_shown(held_out, adapter, tmp_path):
    prompts = ["$x and $y", "\\frac{ & <b>", "", "一只猫 " + "word " * 300]
    evaluation = replace(held_out.measure(adapter), prompts=prompts)
    rows = {name: images[:4] for name, images in evaluation.rows.items()}
    (path,) = replace(evaluation, rows=rows).write_pictures(tmp_path, 1).values()
    assert path.is_file()


def test_an_image_that_is_no_number_is_no_gain_and_no_error(adapter, monkeypatch):
    held_out = make_held_out(4)
    base = held_out.measure(adapter).gains
    family, decode = type(held_out._family), type(held_out._family).decode

    def decoded(self, pipeline, latents):
        images = decode(self, pipeline, latents)
        return images.index_fill(0, torch.tensor([0]), torch.nan)

    monkeypatch.setattr(family, "decode", decoded)
    gains = held_out.measure(adapter).gains
    assert gains.keys() == base.keys() and "watched/checker" in gains
    for name, gain in gains.items():
        assert gain.base == base[name].base  # made before
        assert math.isnan(gain.ours) and math.isnan(gain.mean) and math.isnan(gain.low)


def test_an_evaluation_takes_a_seed_for_each_prompt(held_out):
    for wrong in ({"prompts": [], "seeds": []}, {"seeds": [1]}):
        with pytest.raises(ValueError, match="prompts and a seed for each"):
            replace(held_out, **wrong)


@pytest.mark.slow
def test_processes_that_share_the_work_get_the_result_of_one(tmp_path, adapter):
    """Five prompts on two processes: one prompt has to be made twice."""
    code = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "import torch\n"
        "from accelerate import Accelerator\n"
        "from hypernoise.hypernoise_core.adapter import load_adapter\n"
        "from hypernoise.tests.training.validation.test_held_out import ASSETS, make_held_out\n"
        "accelerator = Accelerator(cpu=True)\n"
        "assert accelerator.num_processes == 2\n"
        "adapter = load_adapter(ASSETS / 'tiny-hypernoise.safetensors')\n"
        "evaluation = make_held_out(5, viz_noise=True).measure(adapter)\n"
        "out = Path(sys.argv[1]) / f'{accelerator.process_index}.pt'\n"
        "torch.save([evaluation.metrics(), evaluation.rows, evaluation.noise_rows], out)\n"
    )
    result = warm.run(code, tmp_path, processes=2)
    assert result.returncode == 0, result.stderr
    one = make_held_out(5, viz_noise=True).measure(adapter)
    for process in range(2):
        metrics, *pictures = torch.load(tmp_path / f"{process}.pt")
        assert metrics == pytest.approx(one.metrics(), rel=1e-4, abs=1e-5)
        for rows, expected in zip(pictures, (one.rows, one.noise_rows), strict=True):
            assert list(rows) == list(expected)
            for name in expected:
                torch.testing.assert_close(rows[name], expected[name], rtol=0, atol=0.01)


def test_the_interval_is_that_of_the_pairs():
    generator = torch.Generator().manual_seed(0)
    base = 100 * torch.randn(200, generator=generator)
    ours = base + 1 + 0.5 * torch.randn(200, generator=generator)
    gain = paired_gain(base, ours)
    assert 0.8 < gain.low < gain.mean < gain.high < 1.2
    half = 1.96 * float((ours - base).std()) / 200**0.5
    assert (gain.high - gain.low) / 2 == pytest.approx(half, rel=0.05)
    assert gain.win_rate > 0.9
    again = paired_gain(base, base + 1)
    assert (again.low, again.high) == pytest.approx((1, 1), abs=1e-4)


@pytest.mark.parametrize("ours", [[2.0], [2.0, float("nan"), 1.0]])
def test_an_interval_that_cannot_be_known_is_no_number(ours):
    gain = paired_gain(torch.zeros(len(ours)), torch.tensor(ours))
    assert gain.low != gain.low
    assert gain.high != gain.high


def test_what_is_watched_is_not_trained_on_and_is_at_hand(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    captions = ["a red circle", "two blue squares"]
    assert default_watch(["tiny-preference"], "tiny-sprint", captions) == "checker"
    assert default_watch(["hps"], "sana", captions, tmp_path) == "none"
    assert "hypernoise download rewards aesthetic" in capsys.readouterr().out
    stand_ins.write_clip(folder := tmp_path / "clip")
    for file in ClipScore.files:
        target = file.inside(tmp_path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((folder / file.name).read_bytes())
    assert default_watch(["hps"], "sana", captions, tmp_path) == "clip"
    assert default_watch(["clip"], "sana", captions, tmp_path) == "none"
    # Prompts that the checker cannot read
    assert default_watch(["hps"], "tiny-sprint", ["a cat"], tmp_path) == "clip"

    images = torch.rand(2, 3, 40, 40)
    measure = get_measure("clip", tmp_path)
    with torch.no_grad():
        expected = load_rewards({"clip": 3.0}, tmp_path).scores(images, captions)["clip"]
    torch.testing.assert_close(measure.score(images, captions), expected)


def test_an_unknown_measure_names_the_known_ones():
    with pytest.raises(ValueError, match="unknown watch_reward 'chekcer'.*checker, none"):
        get_measure("chekcer")


def history(*gains: tuple[float, float], error: float = 0.1) -> list[dict[str, float]]:
    """Evaluations every 100 steps with these gains in the total and in the watched measure."""
    rows = []
    for i, pair in enumerate(gains):
        row = {"step": 100.0 * i, "kind": "evaluation"}
        for name, gain in zip(("evaluation/total", "watched/checker"), pair, strict=True):
            row |= {
                f"{name}_gain": gain,
                f"{name}_gain_low": gain - error,
                f"{name}_gain_high": gain + error,
            }
        rows.append(row)
    return rows


@pytest.mark.parametrize(
    "gains",
    [
        [],
        [(0.0, 0.0)],
        [(0.5, 0.3), (1.0, 0.5)],  # both rise
        [(0.5, 0.5), (1.0, 0.45)],  # the fall may be chance
        [(0.05, -0.5)],  # the rise may be chance
        [(1.0, -0.05)],  # that it is below the base may be chance
        [(-0.5, -0.5)],  # both fall
        [(1.0, -0.5), (1.0, 0.1)],  # it has passed
        [(1.0, float("nan"))],
    ],
)
def test_there_is_no_warning_where_nothing_is_certain(gains):
    assert hacking_warning(history(*gains), watched="checker") is None


def test_a_watched_measure_below_the_base_is_a_warning():
    text = hacking_warning(history((0.5, 0.2), (1.0, -0.5)), watched="checker")
    for part in ("step 100", "+1 ", "checker", "below the base", "-0.5 ", "-0.6 to -0.4"):
        assert part in text
    assert text.endswith("larger --reg_weight, or stop at step 0, where checker was best.")
    only = hacking_warning(history((1.0, -0.5)), watched="checker")
    assert only.endswith("larger --reg_weight.")


def test_a_watched_measure_that_has_fallen_from_its_best_is_a_warning():
    text = hacking_warning(history((0.5, 0.6), (1.0, 0.3)), watched="checker")
    assert "fallen from +0.6" in text
    assert "stop at step 0" in text


def test_the_images_that_are_shown_have_the_nearest_shades(held_out, adapter):
    shown = held_out.measure(adapter).rows["base"]
    images = generate(
        held_out.pipeline,
        held_out.prompts[: len(shown)],
        seeds=list(held_out.seeds)[: len(shown)],
        height=64,
        width=64,
    ).images
    assert (shown - images).abs().max() < 0.51 / 255
