"""The demo: train a hypernetwork on tiny-sprint in minutes, and see what it is worth."""

import random
from pathlib import Path
from typing import Any

from ..hypernoise_core.adapter import save_adapter
from ..hypernoise_core.families import Conditioning
from ..hypernoise_core.generate import encode_prompts
from ..hypernoise_core.hypernetwork import NoiseHypernetwork
from ..hypernoise_core.rewards import Ensemble, load_rewards
from .config import TrainingConfig
from .evaluation import figures, methods, report
from .pipelines import load_pipeline
from .tiny_world.captions import CATEGORIES, Caption, captions_by_category
from .tiny_world.checker import is_correct, score_images
from .tiny_world.scenes import IMAGE_SIZE
from .trainer import Trainer

CANDIDATES = 8  # of best-of-N
_SIZE = (IMAGE_SIZE, IMAGE_SIZE)
_FIRST_EVALUATION_SEED = 500_000_000
_TRAINING_PROMPTS_PER_CATEGORY = 1000
_TEXT_LENGTH = 16  # tokens
_SHOWN_PER_CATEGORY = 2


def run_demo(out: Path, config: TrainingConfig, per_category: int) -> dict[str, Any]:
    """Trains, evaluates and writes everything into `out`; returns what report.json holds.

    Args:
        out: folder for the adapter, the pictures and the report; made if it is not there.
        config: of the training run.
        per_category: held-out captions evaluated in each of the six categories.
    """
    out.mkdir(parents=True, exist_ok=True)
    pipeline, rewards = load_pipeline("tiny-sprint"), load_rewards({"tiny-preference": 1.0})
    prompts = training_prompts(config.seed)
    trainer = Trainer(
        pipeline,
        rewards,
        prompts,
        _encode(pipeline, prompts),
        config,
        size=_SIZE,
        base_model="tiny-sprint",
    )
    hypernetwork = trainer.run()
    train_seconds = trainer.history.seconds[-1]
    adapter = out / "tiny-hypernoise.safetensors"
    save_adapter(hypernetwork, adapter)

    captions = evaluation_captions(per_category)
    seeds = [_FIRST_EVALUATION_SEED + i for i in range(len(captions))]
    print(f"evaluating {len(captions)} held-out captions: base, HyperNoise, best of {CANDIDATES}")
    results = evaluate(pipeline, rewards, hypernetwork, captions, seeds)
    entries = {name: _entry(result, captions) for name, result in results.items()}
    numbers = {
        "methods": entries,
        "train_seconds": train_seconds,
        "train_steps": len(trainer.history.reward),
        "seeds": {"training": config.seed, "evaluation": seeds},
    }
    report.write_json(out / "report.json", numbers)
    _write_pictures(out, trainer, captions, results)
    _write_page(out, numbers)
    return numbers


def _encode(pipeline: Any, prompts: list[str]) -> Conditioning:
    """Encoded prompts; no caption is longer, and padding would cost most of the time."""
    return encode_prompts(pipeline, prompts, batch_size=64, max_sequence_length=_TEXT_LENGTH)


def training_prompts(seed: int) -> list[str]:
    """Captions that are not held out, as many of each category."""
    rng = random.Random(seed)
    return [
        rng.choice(pool).text
        for pool in captions_by_category(held_out=False).values()
        for _ in range(_TRAINING_PROMPTS_PER_CATEGORY)
    ]


def evaluation_captions(per_category: int) -> list[Caption]:
    """Held-out captions, as many of each category; small categories repeat theirs."""
    rng = random.Random(0)
    chosen = []
    for pool in captions_by_category(held_out=True).values():
        rounds = -(-per_category // len(pool))
        chosen += [c for _ in range(rounds) for c in rng.sample(pool, len(pool))][:per_category]
    return chosen


def evaluate(
    pipeline: Any,
    rewards: Ensemble,
    hypernetwork: NoiseHypernetwork,
    captions: list[Caption],
    seeds: list[int],
) -> dict[str, methods.MethodResult]:
    """Base, HyperNoise and best-of-8 on the same captions and noises."""
    prompts = [caption.text for caption in captions]
    task = methods.Task(pipeline, rewards, prompts, _encode(pipeline, prompts), seeds, _SIZE)
    task.images(seeds, hypernetwork)  # warm-up, so that the first method pays for nothing extra
    return {
        "base": methods.base(task),
        "hypernoise": methods.hypernoise(task, hypernetwork),
        f"best_of_{CANDIDATES}": methods.best_of(task, CANDIDATES),
    }


def _entry(result: methods.MethodResult, captions: list[Caption]) -> dict[str, Any]:
    score = score_images(result.images, captions)
    return report.method_entry(
        score.mean, score.categories, result.reward.mean().item(), result.seconds_per_image
    )


def _write_pictures(
    out: Path,
    trainer: Trainer,
    captions: list[Caption],
    results: dict[str, methods.MethodResult],
) -> None:
    """The grid shows the first captions of each category, whatever they came out as."""
    each = len(captions) // len(CATEGORIES)
    shown = [
        category * each + i
        for category in range(len(CATEGORIES))
        for i in range(min(_SHOWN_PER_CATEGORY, each))
    ]
    rows = {name: result.images[shown] for name, result in results.items()}
    marks = {
        name: [is_correct(image, captions[i]) for image, i in zip(images, shown, strict=True)]
        for name, images in rows.items()
    }
    prompts = [captions[i].text for i in shown]
    figures.side_by_side(out / "side_by_side.png", prompts, rows, marks)
    figures.training_curves(out / "training_curves.png", trainer.history)


def _write_page(out: Path, numbers: dict[str, Any]) -> None:
    count = len(numbers["seeds"]["evaluation"])
    report.write_html(
        out / "report.html",
        title="HyperNoise on tiny-sprint",
        summary=[
            f"A noise hypernetwork trained for {numbers['train_steps']} steps in "
            f"{numbers['train_seconds']:.0f} seconds against the reward tiny-preference, evaluated "
            f"on {count} captions and seeds that no training has seen. One generator step each.",
            "The checker reads each image with plain code (colours, shapes, counts, places) and "
            "gives the share of images that show exactly what the caption says; it plays no part "
            "in training. Best of 8 keeps the image that the reward likes best of eight.",
        ],
        methods=numbers["methods"],
        figures={
            "Same caption, same noise (green frame: the checker agrees with the caption)": out
            / "side_by_side.png",
            "Training": out / "training_curves.png",
        },
        emphasised="hypernoise",
    )
