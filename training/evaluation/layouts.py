"""Images in the folders that the evaluations of GenEval, T2I-CompBench and DPG-Bench read.

The folder of a method can be passed to the benchmark's own code as it is. A run that was
interrupted resumes with the prompts whose images are missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from ...hypernoise_core.atomic_file import write_atomically
from ...hypernoise_core.strict_json import parse_object
from ...hypernoise_core.text_file import read_text
from ..processes import join
from ..prompts import spread
from .adapters import Adapters
from .benchmarks.dpg_bench import dpg_bench_items
from .benchmarks.geneval import geneval_items
from .benchmarks.item import Item
from .benchmarks.t2i_compbench import t2i_compbench_items
from .eval_prompts import EvalPrompts, load_paraphrases
from .jobs import Job
from .method_table import get_method
from .methods import Method
from .runner import Batches, Runner, prepare_parts
from .settings import EvaluationConfig
from .suite import digest

LAYOUTS: dict[str, Callable[[Path, int], list[Item]]] = {
    "geneval": geneval_items,
    "t2i-compbench": t2i_compbench_items,
    "dpg-bench": dpg_bench_items,
}
"""From a benchmark's checkout and the number of images of each prompt to what is to be written."""


def write_layout(config: EvaluationConfig) -> list[Path]:
    """Writes the images of each method at each number of steps; returns the methods' folders.

    All processes call this together; each does a share of the prompts.

    Raises:
        FileNotFoundError: a model, an adapter, a reward or a prompt file is missing.
        ValueError: the settings do not fit each other, or a folder holds images of other settings.
    """
    accelerator = join()
    items = LAYOUTS[config.layout](config.data_dir, config.seeds)
    numbers = spread(range(len(items)), config.max_prompts)
    texts = [items[number].prompt for number in numbers]
    adapters = Adapters.load(config)
    methods = config.chosen_methods(paraphrases=config.prompt_command is not None)
    paraphrases = None
    if "prompt_optimisation" in methods:
        folder = config.out / config.layout
        paraphrases = load_paraphrases(config.prompt_command, texts, folder, accelerator)
    searches = any(get_method(method).searches for method in methods)
    encoded = EvalPrompts(texts, None, paraphrases).texts()
    parts = prepare_parts(config, config.weights if searches else {}, encoded)
    # Numbers are those of the whole benchmark, so that a part of it has the same noises.
    prompts = EvalPrompts([item.prompt for item in items], None, paraphrases)
    runner = Runner(config, parts, prompts, adapters.to(parts.accelerator.device))
    folders = _Layout(runner, items, numbers, methods).write()
    accelerator.wait_for_everyone()
    return folders


class _Layout:
    """The images of several methods.

    Args:
        numbers: of the items whose images are written.
    """

    def __init__(
        self, runner: Runner, items: Sequence[Item], numbers: Sequence[int], methods: Sequence[str]
    ) -> None:
        self.runner, self.config = runner, runner.config
        self.items, self.numbers = items, numbers
        self.runs = [
            (method, steps, run)
            for method in methods
            for steps in self.config.chosen_steps
            for run in range(runner.adapters.runs(method))
        ]

    def write(self) -> list[Path]:
        """Writes this process's share of the images; returns the folders of all methods."""
        folders = [self._folder(*of) for of in self.runs]
        for folder, (method, _, run) in zip(folders, self.runs, strict=True):
            self._check(folder, method, run)
        left = [job for of in self.runs for job in self._jobs(*of)]
        own = self.runner.share(left)
        if self.runner.parts.accelerator.is_main_process:
            for folder, (method, _, run) in zip(folders, self.runs, strict=True):
                text = json.dumps(self._identity(method, run), indent=1)
                write_atomically(_identity_file(folder), text.encode())
        self.runner.run(own, self._write, f"generating {self.config.layout}")
        return folders

    def _folder(self, method: str, steps: int, run: int) -> Path:
        several = self.runner.adapters.runs(method) > 1
        name = f"{method}_steps_{steps}" + f"_run_{run}" * several
        return self.config.out / self.config.layout / name

    def _jobs(self, method: str, steps: int, run: int) -> list[Job]:
        """Jobs of a batch each, of the items whose images are missing."""
        folder = self._folder(method, steps, run)
        left = [number for number in self.numbers if not self.items[number].is_done(folder)]
        seeds = range(self.config.seeds)
        return list(self.runner.split(method, steps, run, seeds, left, largest=0))

    def _write(self, job: Job, method: Method, batches: Batches) -> None:
        folder = self._folder(job.method, job.steps, job.run)
        for numbers, task in batches:
            images = method(task).images.split(len(job.seeds))
            for number, of_item in zip(numbers, images, strict=True):
                self.items[number].write(folder, of_item)

    def _identity(self, method: str, run: int) -> dict[str, object]:
        """What the images of a method depend on."""
        searches = get_method(method).searches
        identity = self.runner.parts.identity
        return {
            "model_content": identity["model_content"],
            "reward_content": identity["reward_content"] if searches else None,
            "prompts": digest([repr(item) for item in self.items]),
            "size": list(self.runner.parts.size),
            "precision": self.config.dtype,
            "seeds": self.config.seeds,
            "rewards": self.config.reward_text if searches else None,
            "prompt_command": self.config.prompt_command,
            "adapter": self.runner.adapters.digest(method, run),
        }

    def _check(self, folder: Path, method: str, run: int) -> None:
        """Makes sure that images in the folder are of the same settings."""
        file = _identity_file(folder)
        if file.is_file() and parse_object(read_text(file)) != self._identity(method, run):
            raise ValueError(
                f"{folder} contains images made with other settings, see {file}: choose another "
                f"--out"
            )


def _identity_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")
