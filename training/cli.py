"""The command line: `hypernoise COMMAND`, a function for each command."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..hypernoise_core.text import printable
from .versions import describe_versions
from .writable import check_file, check_folder

if TYPE_CHECKING:
    from .config import TrainingConfig
    from .evaluation.settings import EvaluationConfig
    from .values import Place


def demo(
    out: Path = Path("out/demo"),
    seed: int = 0,
    steps: int = 800,
    max_seconds: float = 290.0,
    per_category: int = 80,
    cache_dir: Path | None = None,
) -> None:
    """Train a noise hypernetwork on the embedded generator and evaluate it, in minutes.

    Args:
        out: Folder for the report, the pictures and the adapter.
        seed: Seed of the training run.
        steps: Training steps.
        max_seconds: Training ends after this many seconds, whatever the steps.
        per_category: Held-out captions evaluated in each of the six categories.
        cache_dir: Folder of encoded prompts; default: ~/.cache/hypernoise.
    """
    from .commands.demo import demo_config, run_demo

    check_folder(out, "--out")
    config = demo_config(seed=seed, steps=steps, max_seconds=max_seconds, cache_dir=cache_dir)
    numbers = run_demo(out, config, per_category)
    for name, entry in numbers["methods"].items():
        print(
            f"{name:>12}: checker {entry['checker_mean']:.3f}, reward {entry['reward_mean']:.2f}, "
            f"{entry['seconds_per_image']:.4f} s per image"
        )
    files = ("report.html", "report.json", "side_by_side.png", "training_curves.png")
    for name in (*files, "tiny-hypernoise.safetensors"):
        print((out / name).resolve())


def train(
    settings: TrainingConfig, *, resume: bool = False, dry_run: bool = False, processes: int = 1
) -> None:
    """Train a noise hypernetwork, or a LoRA on the generator, in a folder that it can go on from.

    --config NAME or FILE.toml takes settings from a file: yours or a shipped one (sana,
    sana-overfit, sana-finetune, flux, sd-turbo, redness, tiny-sprint, tiny-redness). Flags beat it.

    Rewards: --rewards hps=5,imagereward=1 or paper; and for each of hps, imagereward, clip,
    pickscore, aesthetic, red, tiny_preference: --enable_X, --disable_X, --X_weighting WEIGHT. Also
    --disable_reg, which is --reg_weight 0, and --enable_modulate_noise, --disable_modulate_noise.

    Several processes: `accelerate launch -m hypernoise.training.cli train ...`, as `accelerate
    config` says. SIGTERM and Ctrl-C save a checkpoint and end the run.

    Args:
        settings: What is trained, and how.
        resume: Go on from the newest checkpoint in --save_dir; start where there is none.
        dry_run: Print the settings, the numbers of parameters and the memory needed, and stop.
        processes: How many share the run, for --dry_run; launched ones are counted.
    """
    if dry_run:
        from .arguments import to_toml
        from .estimate import estimate

        print(to_toml(settings))
        print("\n".join(estimate(settings, num_processes=processes).lines()))
        return
    from .commands.train import start
    from .processes import naming_lost_processes

    with naming_lost_processes():
        run = start(settings, resume=resume)
        path = run.train()
    if run.is_main:
        print(path.resolve())
    if run.stopped_by is not None:
        done, total = run.trainer.step, run.trainer.plan.steps
        if run.is_main:
            print(
                f"hypernoise: stopped by {run.stopped_by.name} after update {done} of {total}; "
                f"--resume goes on from there",
                file=sys.stderr,
            )
        raise SystemExit(128 + run.stopped_by)


def evaluate(settings: EvaluationConfig) -> None:
    """Compare HyperNoise with ways to spend more compute: gain, cost, and what became of diversity.

    Started again, it goes on where it was. `accelerate launch -m hypernoise.training.cli evaluate
    ...` shares the work between GPUs or processes.

    --layout geneval, t2i-compbench or dpg-bench writes images for the benchmark's own evaluation
    instead, of the prompts in its checkout (--data_dir).

    Args:
        settings: What is compared, on which prompts.
    """
    check_folder(settings.out, "--out")
    if settings.layout is not None:
        from .evaluation.layouts import write_layout

        for folder in write_layout(settings):
            print(folder.resolve())
        return
    from .commands.evaluate import evaluate as run

    if (page := run(settings)) is not None:
        for name in (page.name, "report.json", "report.md"):
            print((page.parent / name).resolve())


def card(
    adapter: Path,
    report: Path | None = None,
    out: Path = Path("README.md"),
    *,
    force: bool = False,
) -> None:
    """Write a model card for an adapter, as the Hugging Face hub shows it.

    Args:
        adapter: A .safetensors file, or a folder of peft or diffusers.
        report: report.json of `hypernoise evaluate`, for its tables.
        out: The file to write.
        force: Replace a file that is there.
    """
    from .commands.card import write_card

    check_file(out, "--out", replace=force)
    print(write_card(adapter, out, report).resolve())


def export(
    adapter: Path,
    out: Path,
    *,
    dtype: Literal["float16", "bfloat16", "float32"] = "float16",
    rank: int | None = None,
    alpha: float | None = None,
    force: bool = False,
) -> None:
    """Write an adapter as one .safetensors file for ComfyUI, smaller if asked for.

    Args:
        adapter: A .safetensors or .bin file, or a folder of peft or diffusers.
        out: The file to write, ending in .safetensors.
        dtype: Of its numbers.
        rank: Reduce every branch to this rank, by singular values; the error is printed.
        alpha: LoRA alpha of an adapter that does not tell it; the written file does.
        force: Replace a file that is there.
    """
    from .commands.export import export_adapter

    check_file(out, "OUT", replace=force)
    report = export_adapter(adapter, out, dtype=dtype, rank=rank, alpha=alpha)
    print("\n".join(report.lines()))
    print(out.resolve())


def generate(
    prompts: tuple[str, ...] = (),
    prompts_file: Path | None = None,
    model: Place = "tiny-sprint",
    adapter: Path | None = None,
    alpha: float | None = None,
    steps: int = 1,
    seed: int = 0,
    images_per_prompt: int = 1,
    strength: float = 1.0,
    height: int | None = None,
    width: int | None = None,
    batch_size: int = 8,
    out: Path = Path("out/images"),
) -> None:
    """Write images of each prompt with and without the hypernetwork, and a side-by-side grid.

    Args:
        prompts: One or more prompts.
        prompts_file: Prompts from a .txt, .json, .jsonl, .csv, .tsv or .parquet file, or - for
            the standard input, instead of or beside --prompts.
        model: tiny-sprint, a diffusers folder, or a repository in the Hugging Face cache.
        adapter: The hypernetwork: a .safetensors file, or a folder of peft or diffusers. Default:
            the embedded one for tiny-sprint.
        alpha: LoRA alpha of an adapter that does not tell it.
        steps: Generator steps.
        seed: Seed of the first image; the next ones count up.
        images_per_prompt: Images of each prompt, from different noises.
        strength: Scales the hypernetwork's output; 0 is the base model.
        height: In pixels; default: the model's own.
        width: In pixels; default: the model's own.
        batch_size: Images generated at a time.
        out: Folder for the images; files of the same name are replaced.
    """
    from .commands.generate import write_comparison
    from .prompt_files import read_prompts

    check_folder(out, "--out")
    grid = write_comparison(
        read_prompts(prompts, prompts_file),
        model=model,
        adapter=adapter,
        alpha=alpha,
        steps=steps,
        seed=seed,
        images_per_prompt=images_per_prompt,
        strength=strength,
        height=height,
        width=width,
        batch_size=batch_size,
        out=out,
    )
    print(grid.resolve())


def reno(
    prompts: tuple[str, ...] = (),
    prompts_file: Path | None = None,
    model: Place = "tiny-sprint",
    rewards: str | None = None,
    rewards_folder: Path | None = None,
    adapter: Path | None = None,
    iterations: int = 50,
    learning_rate: float = 5.0,
    max_grad_norm: float = 0.1,
    penalty_weight: float = 0.01,
    patience: int = 0,
    seed: int = 0,
    height: int | None = None,
    width: int | None = None,
    batch_size: int = 4,
    out: Path = Path("out/reno"),
) -> None:
    """Search the noise that a reward likes best for each prompt (ReNO), by gradient ascent.

    Args:
        prompts: One or more prompts.
        prompts_file: Prompts from a .txt, .json, .jsonl, .csv, .tsv or .parquet file, or - for
            the standard input, instead of or beside --prompts.
        model: tiny-sprint, a diffusers folder, or a repository in the Hugging Face cache.
        rewards: What is climbed: names with weights, such as hps=5,clip=0.01, or paper. Default:
            tiny-preference for tiny-sprint, else paper.
        rewards_folder: Folder of downloaded rewards; default: the Hugging Face cache.
        adapter: A hypernetwork: the search starts from its noise instead of plain noise.
        iterations: Steps of gradient ascent.
        learning_rate: Of the ascent.
        max_grad_norm: Each image's gradient is clipped to this L2 norm.
        penalty_weight: Weight of the penalty on noise of an unlikely norm.
        patience: Stop after this many iterations without a better image; 0: never.
        seed: Seed of the first image; the next ones count up.
        height: In pixels; default: the model's own.
        width: In pixels; default: the model's own.
        batch_size: Images searched for at a time.
        out: Folder for images, noise and scores; files of the same name are replaced.
    """
    from ..hypernoise_core.adapter import load_adapter
    from ..hypernoise_core.reno import RenoConfig
    from ..hypernoise_core.rewards import load_rewards, parse_weights
    from ..hypernoise_core.seeds import check_seeds
    from .commands.reno import write_search
    from .embedded import default_rewards
    from .pipelines import load_pipeline
    from .prompt_files import read_prompts

    check_folder(out, "--out")
    config = RenoConfig(
        iterations=iterations,
        learning_rate=learning_rate,
        max_grad_norm=max_grad_norm,
        penalty_weight=penalty_weight,
        patience=patience,
    )
    if (height is None) != (width is None):
        raise ValueError("give both --height and --width, or none of them")
    texts = read_prompts(prompts, prompts_file)
    check_seeds(range(seed, seed + len(texts)))
    grid = write_search(
        texts,
        load_pipeline(model),
        load_rewards(parse_weights(rewards or default_rewards(model)), rewards_folder),
        config,
        hypernetwork=None if adapter is None else load_adapter(adapter),
        seed=seed,
        size=None if height is None else (height, width),
        batch_size=batch_size,
        out=out,
    )
    print(grid.resolve())


def score(
    images: Path,
    prompts: Path | None = None,
    rewards: str = "paper",
    csv: Path = Path("out/scores.csv"),
    rewards_folder: Path | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    batch_size: int = 16,
) -> None:
    """Score a folder of images with rewards, into a table. Started again, it goes on where it was.

    `accelerate launch -m hypernoise.training.cli score ...` does it on several GPUs or processes.

    Args:
        images: Folder of images, searched with its subfolders.
        prompts: A .csv, .tsv, .json or .jsonl with image (or file_name) and prompt (or caption or
            text), or a text file with one prompt for all images, or one a line in their
            alphabetical order.
        rewards: Names with weights, such as hps=5,imagereward, or paper.
        csv: The table: a line an image, a column a reward, their weighted sum, and by what a rerun
            knows whether image and rewards are still the same.
        rewards_folder: Folder of downloaded rewards; default: the Hugging Face cache.
        precision: Of the rewards' large networks.
        batch_size: Images scored at a time.
    """
    import torch

    from ..hypernoise_core.rewards import load_rewards, parse_weights, reward_identities
    from .commands.score import score_folder
    from .processes import join
    from .progress import keep_loading_quiet

    if prompts is None:
        raise ValueError("which prompts? Give --prompts FILE")
    check_file(csv, "--csv", replace=True)  # `score_folder` keeps a table of anything else
    keep_loading_quiet()
    ensemble = load_rewards(parse_weights(rewards), rewards_folder, getattr(torch, precision))
    scorer = reward_identities(ensemble.weights, rewards_folder) | {"precision": precision}
    problems = score_folder(images, prompts, ensemble.to(join().device), csv, batch_size, scorer)
    print(csv.resolve())
    if problems:
        raise ValueError(f"{len(problems)} images are not in the table:\n" + "\n".join(problems))


def download(what: tuple[str, ...], folder: Path | None = None) -> None:
    """Get the weights of rewards from the Hugging Face hub, once, and check them.

    Args:
        what: `rewards` for the paper's four, some 13 GB; or `rewards` and the names of some.
        folder: Where to put them; default: the Hugging Face cache.
    """
    from ..hypernoise_core.rewards import WeightStore, get_reward, paper_weights

    kind, *names = what or ("nothing",)
    if kind != "rewards":
        raise ValueError(
            f"cannot download {kind!r}; `hypernoise download rewards` is what there is"
        )
    if folder is not None:
        check_folder(folder, "--folder")
    store = WeightStore(folder)
    chosen = [get_reward(name) for name in names or paper_weights()]
    for file in dict.fromkeys(file for cls in chosen for file in cls.files):
        print(store.fetch(file))


def info(adapter: Path, alpha: float | None = None) -> None:
    """Print what an adapter file says about itself: a noise hypernetwork, or a fine-tune's LoRA.

    Args:
        adapter: A .safetensors file, or a folder of peft or diffusers.
        alpha: LoRA alpha of an adapter that does not tell it.
    """
    from dataclasses import asdict

    from ..hypernoise_core.generator_lora import GeneratorLora, load_either

    loaded = load_either(adapter, alpha=alpha)
    weights = sum(parameter.numel() for parameter in loaded.parameters())
    is_lora = isinstance(loaded, GeneratorLora)
    kind = "LoRA on the generator" if is_lora else "noise hypernetwork"
    facts = {"kind": kind, **asdict(loaded.metadata), "layers": len(loaded.layer_names)}
    print(json.dumps({**facts, "weights": weights}, indent=2, default=str))


COMMANDS = {
    command.__name__: command
    for command in (demo, train, evaluate, card, generate, reno, score, export, download, info)
}


def _overview() -> str:
    """The commands, with the first sentence of each."""
    sentences = {name: command.__doc__.partition("\n")[0] for name, command in COMMANDS.items()}
    lines = [f"  {name:<9} {sentence}" for name, sentence in sentences.items()]
    usage = ["usage: hypernoise COMMAND ...", "       hypernoise COMMAND --help"]
    return "\n".join([*usage, "       hypernoise --version", "", *lines])


def _bind(name: str, arguments: list[str]) -> Callable[[], None]:
    """The command of that name with its arguments; nothing is imported for the others."""
    from .command_line import bind

    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        raise ValueError(f"no command {name!r:.60}: {hint}")
    settings, others = None, ()
    if name == "train":
        from .arguments import other_flags, read_arguments

        (settings, arguments), others = read_arguments(arguments), other_flags()
    if name == "evaluate":
        from .evaluation.settings import EvaluationConfig

        settings = EvaluationConfig()
    return bind(COMMANDS[name], arguments, settings, others)


def main() -> None:
    """Runs the command that sys.argv names; bad input ends in one line and exit code 2."""
    name, *arguments = sys.argv[1:] or ["--help"]
    try:
        if name in ("-h", "--help"):
            print(_overview())
        elif name == "--version":
            print("\n".join(describe_versions()))
        else:
            _bind(name, arguments)()
    except (ValueError, OSError, ImportError) as error:
        print(f"hypernoise: {printable(_in_words(error))}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt as interrupt:
        print("hypernoise: interrupted", file=sys.stderr)
        raise SystemExit(130) from interrupt


def _in_words(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f'{error.name} is missing: pip install "hypernoise[train]"'
    return str(error)


if __name__ == "__main__":  # `accelerate launch -m hypernoise.training.cli`
    main()
