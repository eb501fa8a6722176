"""What ships: tiny-sprint and tiny-preference load with stock classes and keep their promises."""

import random
from pathlib import Path

import pytest
import torch
from diffusers import SanaSprintPipeline

import hypernoise
from hypernoise.hypernoise_core.generate import generate
from hypernoise.hypernoise_core.rewards import load_rewards
from hypernoise.training.commands.demo import evaluation_captions
from hypernoise.training.pipelines import load_pipeline
from hypernoise.training.tiny_world.checker import score_images
from hypernoise.training.tiny_world.scenes import draw, sample_captions, sample_scene

ASSETS = Path(hypernoise.__file__).parent / "assets"


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline("tiny-sprint")


def test_the_models_are_small():
    assert folder_bytes(ASSETS / "tiny-sprint") <= 12_000_000
    assert folder_bytes(ASSETS / "tiny-preference") <= 4_000_000


def test_the_stock_pipeline_loads_and_runs_it_unchanged():
    stock = SanaSprintPipeline.from_pretrained(ASSETS / "tiny-sprint", local_files_only=True)
    stock.set_progress_bar_config(disable=True)
    size = {"height": 64, "width": 64, "use_resolution_binning": False, "output_type": "pt"}
    prompts = ["a red circle left of a blue square", "three green triangles"]
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    images = stock(
        prompts,
        num_inference_steps=1,
        intermediate_timesteps=None,
        generator=generators,
        **size,
    ).images
    ours = generate(load_pipeline("tiny-sprint"), prompts, seeds=[1, 2]).images
    assert torch.allclose(images, ours, atol=1e-4)


def test_base_is_imperfect_and_far_from_useless(pipeline):
    captions = evaluation_captions(120)  # 720 images: the mean is known to about 0.02
    prompts = [caption.text for caption in captions]
    images = generate(pipeline, prompts, seeds=range(len(prompts)), batch_size=40).images
    assert 0.35 <= score_images(images, captions).mean <= 0.75


def test_images_vary_with_the_seed(pipeline):
    images = generate(pipeline, ["a red circle"] * 8, seeds=range(8)).images
    distances = torch.cdist(images.flatten(1), images.flatten(1)) / images[0].numel() ** 0.5
    assert distances[~torch.eye(8, dtype=bool)].min() > 0.02


def test_the_reward_prefers_the_true_caption_on_held_out_captions():
    rng = random.Random(7)
    captions = sample_captions(400, rng, held_out=True)
    images = draw([sample_scene(caption, rng) for caption in captions])
    true = [caption.text for caption in captions]
    false = true[1:] + true[:1]
    reward = load_rewards({"tiny-preference": 1.0})
    with torch.no_grad():
        better = reward.score(images, true) > reward.score(images, false)
    different = torch.tensor([a != b for a, b in zip(true, false, strict=True)])
    assert better[different].float().mean() > 0.97


@pytest.mark.parametrize(
    "file",
    [
        "tiny-sprint/model_index.json",
        "tiny-sprint/tokenizer/tokenizer_config.json",
        "tiny-preference/tokenizer_config.json",
    ],
)
def test_tokenizers_are_named_so_that_transformers_4_and_5_know_them(file):
    text = (ASSETS / file).read_text(encoding="utf-8")
    assert "PreTrainedTokenizerFast" in text and "TokenizersBackend" not in text
