"""Runs jobs: each once, in one of the processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from tqdm import tqdm

from ..parts import Parts, prepare
from ..progress import progress_bar
from .adapters import Adapters
from .eval_prompts import EvalPrompts
from .jobs import Job, distribute
from .method_table import MethodInputs
from .methods import Method, Task
from .settings import EvaluationConfig

Batches = Iterator[tuple[list[int], Task]]
"""The numbers of each batch's prompts, and the task that generates an image of each of them from
each of the job's seeds, prompt by prompt."""

_FIRST_SEED = 700_000_000
_SEED_STRIDE = 100_000_000  # beyond all candidates of best-of-N


def noise_seed(number: int, seed: int) -> int:
    """The seed of a prompt's noise, the same for all methods and numbers of steps.

    Args:
        number: of the prompt.
        seed: which of its noises.
    """
    return _FIRST_SEED + seed * _SEED_STRIDE + number


def prepare_parts(
    config: EvaluationConfig, rewards: Mapping[str, float], prompts: Sequence[str]
) -> Parts:
    """Loads the model and the rewards, and encodes the prompts; raises what `prepare` raises."""
    return prepare(
        config.model,
        rewards,
        prompts,
        image_size=config.image_size,
        precision=config.dtype,
        batch_size=config.batch_size,
        cache_dir=config.cache_dir,
        rewards_folder=config.rewards_folder,
    )


class Runner:
    """Generates the images of jobs.

    Args:
        parts: with the encodings of all prompts that jobs ask for and of their paraphrases.
        adapters: on the device.
    """

    def __init__(
        self, config: EvaluationConfig, parts: Parts, prompts: EvalPrompts, adapters: Adapters
    ) -> None:
        self.config, self.parts, self.prompts, self.adapters = config, parts, prompts, adapters

    def split(
        self,
        method: str,
        steps: int,
        run: int,
        seeds: Sequence[int],
        prompts: Sequence[int],
        *,
        largest: int,
    ) -> Iterator[Job]:
        """Jobs of whole batches, for all of the prompts.

        Args:
            prompts: their numbers.
            largest: forward passes of a job at most, unless a single batch takes more.
        """
        info = self.adapters.info(method)
        cost = (info.passes * steps + info.once) * len(seeds)  # of a prompt
        at_a_time = self._prompts_in_a_batch(seeds)
        at_a_time *= max(1, largest // (cost * at_a_time))
        for part, start in enumerate(range(0, len(prompts), at_a_time)):
            numbers = tuple(prompts[start : start + at_a_time])
            yield Job(method, steps, run, tuple(seeds), part, numbers, cost * len(numbers))

    def share(self, jobs: Sequence[Job]) -> list[Job]:
        """This process's share of the jobs. Processes wait here until all have found out what is
        left to do, before any of them writes."""
        accelerator = self.parts.accelerator
        accelerator.wait_for_everyone()
        return distribute(jobs, accelerator.num_processes)[accelerator.process_index]

    def run(
        self, jobs: Sequence[Job], work: Callable[[Job, Method, Batches], None], title: str
    ) -> None:
        """Runs the jobs under a progress bar.

        Args:
            jobs: from `share`.
            work: generates the images of all batches of a job with its method, and stores them.
        """
        with progress_bar(
            total=sum(job.cost for job in jobs),
            desc=title,
            unit="pass",
            unit_scale=True,
            disable=not self.parts.accelerator.is_main_process,
        ) as bar:
            for job in jobs:
                bar.set_postfix_str(f"{job.method}, {job.steps} steps")
                method = self.adapters.info(job.method).make(self._inputs(job))
                work(job, method, self._counted(job, bar))

    def batches(self, job: Job) -> Batches:
        """The batches of a job."""
        size = self._prompts_in_a_batch(job.seeds)
        for start in range(0, len(job.prompts), size):
            numbers = list(job.prompts[start : start + size])
            images = [(number, seed) for number in numbers for seed in job.seeds]
            prompts = [self.prompts.prompts[number] for number, _ in images]
            yield (
                numbers,
                Task(
                    pipeline=self.parts.pipeline,
                    rewards=self.parts.rewards,
                    prompts=prompts,
                    conditioning=self.parts.features.rows(prompts),
                    seeds=[noise_seed(number, seed) for number, seed in images],
                    size=self.parts.size,
                    batch_size=self.config.batch_size,
                    steps=job.steps,
                ),
            )

    def uses_paraphrases(self, job: Job) -> bool:
        return self.adapters.info(job.method).needs == "paraphrases"

    def _counted(self, job: Job, bar: tqdm) -> Batches:
        """The batches, each of which moves the bar on when it is done."""
        for numbers, task in self.batches(job):
            yield numbers, task
            bar.update(job.cost * len(numbers) // len(job.prompts))

    def _inputs(self, job: Job) -> MethodInputs:
        if not self.uses_paraphrases(job):
            return self.adapters.get(job.method, job.run)
        paraphrases = self.prompts.paraphrases.by_prompt
        return MethodInputs(paraphrases=paraphrases, encode=self.parts.features.rows)

    def _prompts_in_a_batch(self, seeds: Sequence[int]) -> int:
        return max(1, self.config.batch_size // len(seeds))
