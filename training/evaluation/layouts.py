"""Images in the folders that the evaluations of GenEval, T2I-CompBench and DPG-Bench read.

The folder of a method can be handed to a benchmark's own code as it is. A run that was cut off goes
on with the prompts whose images are missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ...hypernoise_core.atomic_file import write_atomically
from ...hypernoise_core.generate import encode_prompts
from ...hypernoise_core.rewards import load_rewards, parse_weights
from ...hypernoise_core.strict_json import parse_object
from ...hypernoise_core.text_file import read_text
from ..parts import identity_of_weights
from ..pipelines import load_pipeline
from ..processes import join
from ..progress import progress_bar
from ..prompt_files import clean_prompt, json_lines, read_file
from ..prompts import spread
from ..published_models import image_size
from ..report.figures import write_png
from .adapters import Adapters
from .catalogue import Ingredients, get_entry
from .methods import Task
from .settings import EvaluationConfig
from .suite import digest, noise_seed
from .wordings import ask_command

_LONGEST_NAME = 255  # bytes of a file's name


@dataclass(frozen=True)
class Item:
    """A prompt, and the files that its images go into."""

    prompt: str
    files: tuple[str, ...]
    """Below the method's folder: one for each image, or a single one for a 2 x 2 grid of four."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Further files and what they hold."""

    def is_done(self, folder: Path) -> bool:
        return all((folder / name).is_file() for name in self.files)

    def write(self, folder: Path, images: Tensor) -> None:
        """Writes images (S, 3, H, W) in [0, 1]."""
        for name, text in self.texts.items():
            write_atomically(folder / name, text.encode())
        pictures = images if len(self.files) == len(images) else [_two_by_two(images)]
        for name, picture in zip(self.files, pictures, strict=True):
            write_png(folder / name, picture)


def _two_by_two(images: Tensor) -> Tensor:
    """(4, 3, H, W) -> (3, 2H, 2W), line by line."""
    top, bottom = (torch.cat(list(pair), dim=2) for pair in images.split(2))
    return torch.cat([top, bottom], dim=1)


# What the benchmarks read


def geneval(checkout: Path, images: int) -> list[Item]:
    """NNNNN/metadata.jsonl and NNNNN/samples/MMMM.png for each line of evaluation_metadata.jsonl.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: a line is no object with a prompt on which something stands; names it.
    """
    file = _find(checkout, "prompts/evaluation_metadata.jsonl", "geneval")
    return [
        Item(
            _prompt_of(file, line, entry),
            tuple(f"{number:05d}/samples/{image:04d}.png" for image in range(images)),
            {f"{number:05d}/metadata.jsonl": text + "\n"},
        )
        for number, (line, text, entry) in enumerate(json_lines(file))
    ]


def _prompt_of(file: Path, line: int, entry: Any) -> str:
    if not isinstance(entry, dict) or "prompt" not in entry:
        raise ValueError(f"{file}, line {line}: this is no object with a prompt")
    prompt = clean_prompt(str(file), f"line {line}", entry["prompt"])
    if not prompt:
        raise ValueError(f"{file}, line {line}: the prompt is empty; take the line out")
    return prompt


def t2i_compbench(checkout: Path, images: int) -> list[Item]:
    """CATEGORY_val/samples/PROMPT_NNNNNN.png for each line of examples/dataset/CATEGORY_val.txt.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a prompt cannot be part of a file's name.
    """
    folder = _find(checkout, "examples/dataset", "T2I-CompBench")
    files = sorted(folder.glob("*_val.txt"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no *_val.txt, T2I-CompBench's evaluation prompts")
    items = []
    for file in files:
        for line, text in enumerate(read_file(file)):
            prompt = text.split("\t")[0]
            numbers = range(line * images, (line + 1) * images)
            names = tuple(f"{file.stem}/samples/{prompt}_{number:06d}.png" for number in numbers)
            if "/" in prompt or len(Path(names[0]).name.encode()) > _LONGEST_NAME:
                raise ValueError(f"{file}: the prompt {prompt!r} cannot be part of a file's name")
            items.append(Item(prompt, names))
    return items


def dpg_bench(checkout: Path, images: int) -> list[Item]:
    """NAME.png, a grid of 2 x 2 images or a single one, for each dpg_bench/prompts/NAME.txt.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: neither one nor four images of each prompt are asked for, or a file is empty.
    """
    if images not in (1, 4):
        raise ValueError(f"DPG-Bench takes 1 or 4 images of each prompt: --seeds 4, not {images}")
    folder = _find(checkout, "prompts", "dpg_bench")
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no .txt, DPG-Bench's prompts")
    items = []
    for file in files:
        prompt = " ".join(read_file(file))
        if not prompt:
            raise ValueError(f"{file} holds no prompt")
        items.append(Item(prompt, (f"{file.stem}.png",)))
    return items


def _find(checkout: Path, name: str, inside: str) -> Path:
    """A file or folder of a checkout, which may also be the folder around it."""
    places = [checkout / name, checkout / inside / name]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise FileNotFoundError(
            f"{name} is missing; looked for {' and '.join(map(str, places))}: --data_dir is the "
            f"benchmark's checkout"
        )
    return found


LAYOUTS: dict[str, Callable[[Path, int], list[Item]]] = {
    "geneval": geneval,
    "t2i-compbench": t2i_compbench,
    "dpg-bench": dpg_bench,
}
"""From a benchmark's checkout and the number of images of each prompt to what is to be written."""


# Writing


def write_layout(config: EvaluationConfig) -> list[Path]:
    """Writes the images of each method at each number of steps; returns the methods' folders.

    All processes call this together; each does a share of the prompts.

    Raises:
        FileNotFoundError: a model, an adapter, a reward or a prompt file is missing.
        ValueError: something does not fit, or a folder holds images of other settings.
    """
    accelerator = join()
    numbered = list(enumerate(LAYOUTS[config.layout](config.data_dir, config.seeds)))
    items = spread(numbered, config.max_prompts)
    methods = config.chosen_methods(wordings=config.prompt_command is not None)
    prompts = digest([repr(item) for _, item in numbered])
    writer = _Writer(config, accelerator, Adapters.load(config), items, prompts, methods)
    folders = [
        writer.write(method, steps, run)
        for method in methods
        for steps in config.chosen_steps
        for run in range(writer.adapters.runs(method))
    ]
    accelerator.wait_for_everyone()
    return folders


class _Writer:
    def __init__(
        self,
        config: EvaluationConfig,
        accelerator: Accelerator,
        adapters: Adapters,
        items: Sequence[tuple[int, Item]],
        prompts: str,
        methods: Sequence[str],
    ) -> None:
        """`prompts`: a digest of all the benchmark's items, also of those left out."""
        self.config, self.accelerator, self.prompts = config, accelerator, prompts
        dtype, device = getattr(torch, config.dtype), accelerator.device
        self.rewards, weights = None, {}
        if any(get_entry(method).searches for method in methods):
            weights = parse_weights(config.reward_text)
            self.rewards = load_rewards(weights, config.rewards_folder, dtype).to(device)
        self.weights = identity_of_weights(
            config.model, weights, config.cache_dir, config.rewards_folder
        )
        self.pipeline = load_pipeline(
            config.model, dtype=dtype, device=device, cache_dir=config.cache_dir
        )
        self.size = image_size(config.training_config("example-prompts"), self.pipeline)
        self.adapters = adapters.to(device)
        first, step = accelerator.process_index, accelerator.num_processes
        self.own = items[first::step]

    def write(self, method: str, steps: int, run: int) -> Path:
        """This process's share of the images of a method; returns its folder."""
        name = f"{method}_steps_{steps}" + f"_run_{run}" * (self.adapters.runs(method) > 1)
        folder = self.config.out / self.config.layout / name
        self._check(folder, method, run)
        left = [(number, item) for number, item in self.own if not item.is_done(folder)]
        made = get_entry(method).make(self._ingredients(method, run, [i for _, i in left]))
        bar = progress_bar(total=len(left), desc=name, disable=not self.accelerator.is_main_process)
        at_a_time = max(1, self.config.batch_size // self.config.seeds)
        with bar:
            for start in range(0, len(left), at_a_time):
                chosen = left[start : start + at_a_time]
                images = made(self._task(chosen, steps)).images
                for (_, item), of_item in zip(chosen, images.split(self.config.seeds), strict=True):
                    item.write(folder, of_item)
                bar.update(len(chosen))
        return folder

    def _check(self, folder: Path, method: str, run: int) -> None:
        """That the folder's images are of the same settings, which lie beside it."""
        searches = get_entry(method).searches
        identity = {
            "model_content": self.weights["model_content"],
            "reward_content": self.weights["reward_content"] if searches else None,
            "prompts": self.prompts,
            "size": list(self.size),
            "precision": self.config.dtype,
            "seeds": self.config.seeds,
            "rewards": self.config.reward_text if searches else None,
            "prompt_command": self.config.prompt_command,
            "adapter": self.adapters.digest(method, run),
        }
        file = folder.with_name(f"{folder.name}.json")
        if file.is_file() and parse_object(read_text(file)) != identity:
            raise ValueError(
                f"{folder} holds images of other settings, see {file}: choose another --out"
            )
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            write_atomically(file, json.dumps(identity, indent=1).encode())

    def _ingredients(self, method: str, run: int, items: Sequence[Item]) -> Ingredients:
        if get_entry(method).needs != "wordings":
            return self.adapters.get(method, run)
        prompts = list(dict.fromkeys(item.prompt for item in items))
        wordings = ask_command(self.config.prompt_command, prompts) if prompts else {}
        return Ingredients(wordings=wordings, encode=self._encode)

    def _encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        return encode_prompts(self.pipeline, prompts, batch_size=self.config.batch_size)

    def _task(self, chosen: Sequence[tuple[int, Item]], steps: int) -> Task:
        pairs = [(n, item.prompt, s) for n, item in chosen for s in range(self.config.seeds)]
        prompts = [prompt for _, prompt, _ in pairs]
        return Task(
            pipeline=self.pipeline,
            rewards=self.rewards,
            prompts=prompts,
            conditioning=self._encode(prompts),
            seeds=[noise_seed(number, seed) for number, _, seed in pairs],
            size=self.size,
            batch_size=self.config.batch_size,
            steps=steps,
        )
