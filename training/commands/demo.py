"""`hypernoise demo`: train a hypernetwork on tiny-sprint in minutes and evaluate it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ...hypernoise_core.adapter import save_adapter
from ...hypernoise_core.hypernetwork import NoiseHypernetwork
from ..config import TrainingConfig
from ..evaluation import methods
from ..parts import Parts, TrainingParts, prepare_training
from ..progress import progress_bar
from ..prompts import tiny_world_captions
from ..report import figures, page
from ..settings import load_settings
from ..tiny_world.captions import CATEGORIES, Caption
from ..tiny_world.checker import is_correct, score_images
from ..trainer import Metrics
from ..writable import check_folder, check_others
from .settings import DemoConfig

CANDIDATES = 8  # of best-of-N
_FIRST_EVALUATION_SEED = 500_000_000
_SHOWN_PER_CATEGORY = 2
_SIDE_BY_SIDE, _CURVES = "side_by_side.png", "training_curves.png"


def run(settings: DemoConfig) -> None:
    """Runs the demo, and prints its results and the paths of what it has written."""
    check_folder(settings.out, "--out")
    config = demo_config(
        seed=settings.seed,
        steps=settings.steps,
        max_seconds=settings.max_seconds,
        cache_dir=settings.cache_dir,
    )
    numbers = run_demo(settings.out, config, settings.per_category)
    for name, entry in numbers["methods"].items():
        print(
            f"{name:>12}: checker {entry['checker_mean']:.3f}, reward {entry['reward_mean']:.2f}, "
            f"{entry['seconds_per_image']:.4f} s per image"
        )
    files = ("report.html", "report.json", _SIDE_BY_SIDE, _CURVES, "tiny-hypernoise.safetensors")
    for name in files:
        print((settings.out / name).resolve())


def run_demo(out: Path, config: TrainingConfig, per_category: int) -> dict[str, Any]:
    """Trains, evaluates and writes everything into `out`; returns what report.json holds.

    Args:
        out: folder for the adapter, the pictures and the report; created if missing.
        config: of the training run, on tiny-sprint.
        per_category: number of held-out captions in each of the six categories.

    Raises:
        FileExistsError: the folder is not a demo's and holds files it would replace.
    """
    adapter = out / "tiny-hypernoise.safetensors"
    if not adapter.exists():  # what a demo writes first
        check_others(out, "--out", (*page.REPORTS, _SIDE_BY_SIDE, _CURVES))
    out.mkdir(parents=True, exist_ok=True)
    captions = evaluation_captions(per_category)
    parts = prepare_training(config, also_encode=[caption.text for caption in captions])
    history, hypernetwork = _train(config, parts)
    save_adapter(hypernetwork, adapter)

    seeds = [_FIRST_EVALUATION_SEED + i for i in range(len(captions))]
    print(f"evaluating {len(captions)} held-out captions: base, HyperNoise, best of {CANDIDATES}")
    results = evaluate(parts, hypernetwork, captions, seeds)
    entries = {name: _entry(result, captions) for name, result in results.items()}
    numbers = {
        "methods": entries,
        "train_seconds": history[-1]["seconds"],
        "train_steps": len(history),
        "seeds": {"training": config.seed, "evaluation": seeds},
    }
    page.write_json(out / "report.json", numbers)
    _write_pictures(out, history, captions, results)
    _write_page(out, numbers)
    return numbers


def demo_config(**changes: Any) -> TrainingConfig:
    """The included settings for tiny-sprint, with these changes."""
    return replace(load_settings(TrainingConfig, "tiny-sprint"), **{"log_every": 0} | changes)


def _train(config: TrainingConfig, parts: TrainingParts) -> tuple[list[Metrics], NoiseHypernetwork]:
    """The metrics of each update, and the trained hypernetwork."""
    trainer = parts.trainer(config)
    history = []
    with progress_bar(total=trainer.plan.steps, desc="training", unit="update") as bar:
        for metrics in trainer.updates():
            history.append(metrics)
            bar.update()
            bar.set_postfix_str(
                f"reward {metrics['reward']:.2f}, |f|^2 {metrics['penalty']:.3f}, "
                f"{len(history) * config.batch_size / metrics['seconds']:.0f} images/s"
            )
    return history, trainer.trained


def evaluation_captions(per_category: int) -> list[Caption]:
    """Held-out captions, equally many of each category; small categories repeat theirs."""
    return tiny_world_captions(held_out=True, per_category=per_category)


def evaluate(
    parts: Parts, hypernetwork: NoiseHypernetwork, captions: list[Caption], seeds: list[int]
) -> dict[str, methods.MethodResult]:
    """Base, HyperNoise and best-of-8 on the same captions and noises."""
    prompts = [caption.text for caption in captions]
    conditioning = parts.features.rows(prompts)
    task = methods.Task(parts.pipeline, parts.rewards, prompts, conditioning, seeds, parts.size)
    compared = {
        "base": methods.base,
        "hypernoise": methods.hypernoise(hypernetwork),
        f"best_of_{CANDIDATES}": methods.best_of(CANDIDATES),
    }
    task.generate(hypernetwork)  # warm-up, so that the first method pays for nothing extra
    return {name: methods.measure(task, method) for name, method in compared.items()}


def _entry(result: methods.MethodResult, captions: list[Caption]) -> dict[str, Any]:
    score = score_images(result.images, captions)
    return method_entry(
        score.mean, score.categories, result.reward.mean().item(), result.seconds_per_image
    )


def method_entry(
    checker_mean: float, checker: dict[str, float], reward_mean: float, seconds_per_image: float
) -> dict[str, Any]:
    """One method's numbers as in report.json; shares in [0, 1]."""
    return {
        "checker_mean": checker_mean,
        "checker": checker,
        "reward_mean": reward_mean,
        "seconds_per_image": seconds_per_image,
    }


def _write_pictures(
    out: Path,
    history: list[Metrics],
    captions: list[Caption],
    results: dict[str, methods.MethodResult],
) -> None:
    """The grid shows the first captions of each category, not selected ones."""
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
    figures.side_by_side(out / _SIDE_BY_SIDE, prompts, rows, marks)
    curves = {"reward": "reward", "penalty": "mean |f|²"}
    values = {title: [metrics[name] for metrics in history] for name, title in curves.items()}
    figures.training_curves(out / _CURVES, values)


def _write_page(out: Path, numbers: dict[str, Any]) -> None:
    count = len(numbers["seeds"]["evaluation"])
    write_html(
        out / "report.html",
        title="HyperNoise on tiny-sprint",
        summary=[
            f"A noise hypernetwork trained for {numbers['train_steps']} steps in "
            f"{numbers['train_seconds']:.0f} seconds against the reward tiny-preference, evaluated "
            f"on {count} captions and seeds not seen in training, with one generator step each.",
            "The checker analyses each image with plain code (colours, shapes, counts, positions) "
            "and gives the share of images that show exactly what the caption says; it is not used "
            "in training. Best of 8 keeps the image with the highest reward of eight.",
        ],
        methods=numbers["methods"],
        pictures={
            "Same caption, same noise (green frame: the checker agrees with the caption)": out
            / _SIDE_BY_SIDE,
            "Training": out / _CURVES,
        },
        emphasised="hypernoise",
    )


def write_html(
    path: Path,
    *,
    title: str,
    summary: list[str],
    methods: dict[str, dict[str, Any]],
    pictures: dict[str, Path],
    emphasised: str,
) -> None:
    """Writes one self-contained page that compares methods.

    Args:
        summary: paragraphs of plain text.
        methods: as in report.json; see `method_entry`.
        pictures: files (.png or .jpg) by caption, embedded in the page.
        emphasised: the method whose row stands out.
    """
    parts: list[page.Part] = [page.Paragraph(text) for text in summary]
    parts.append(_methods_table(methods, emphasised))
    parts += [page.Picture(caption, path) for caption, path in pictures.items()]
    page.write_page(path, title, parts)


def _methods_table(methods: dict[str, dict[str, Any]], emphasised: str) -> page.Part:
    categories = list(next(iter(methods.values()))["checker"])
    rows = []
    for name, entry in methods.items():
        numbers = [f"{entry['checker'][category]:.2f}" for category in categories]
        numbers += [f"{entry['checker_mean']:.3f}", f"{entry['reward_mean']:.2f}"]
        rows.append([name, *numbers, f"{entry['seconds_per_image']:.4f}"])
    head = ["method", *categories, "checker mean", "reward", "seconds per image"]
    return page.Table(head, rows, emphasised)
