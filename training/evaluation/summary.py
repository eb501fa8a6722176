"""From the results of jobs to the report of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ...hypernoise_core.rewards import compare
from .adapters import ABLATION
from .jobs import COPIES, FEATURES, VIEWS, Job, JobResult, read_job_tensors
from .lpips import VIEW, Lpips, weights_file
from .method_table import BASE, FINETUNE, METHODS, OURS, RENO
from .metrics import Mean, best_of_kl, diversity, mean, pixel_diversity, share_recovered
from .results import (
    AblationResults,
    Interval,
    MethodResults,
    RecoveredShare,
    Report,
    RewardScore,
    RunMeans,
    Score,
    Settings,
    Shares,
    Table,
)
from .suite import Suite
from .trade_offs import at_our_reward

TOTAL = "total"
"""Name of the weighted sum of the rewards among the scores."""
CHECKER = "checker"


@dataclass
class Measurements:
    """The measurements of all images of a method at one number of steps."""

    places: list[tuple[int, int]] = field(default_factory=list)
    """Number of the prompt, and of the seed."""
    runs: list[int] = field(default_factory=list)
    """Which of several adapters."""
    values: dict[str, list[float]] = field(default_factory=dict)
    """By score: rewards, their total, the checker, f_squared."""
    seconds: list[float] = field(default_factory=list)
    """Per image, of the median batch of each job."""
    forward_passes: float = 0.0
    backward_passes: float = 0.0
    tensors: dict[str, dict[int, dict[int, list[Tensor]]]] = field(default_factory=dict)
    """`features`, `views` and `copies` of each run and seed, (n, ...) for each part."""

    def add(self, job: Job, result: JobResult, tensors: Mapping[str, Tensor]) -> None:
        self.places += [(number, job.seed) for number in job.prompts]
        self.runs += [job.run] * len(job.prompts)
        values = result.scores | {TOTAL: result.total}
        values |= {} if result.correct is None else {CHECKER: result.correct}
        values |= {} if result.f_squared is None else {"f_squared": result.f_squared}
        for name, numbers in values.items():
            self.values.setdefault(name, []).extend(numbers)
        self.seconds.append(float(np.median(result.seconds_per_image)))
        self.forward_passes, self.backward_passes = result.forward_passes, result.backward_passes
        for name in tensors.keys() & {FEATURES, VIEWS, COPIES}:
            of_run = self.tensors.setdefault(name, {}).setdefault(job.run, {})
            of_run.setdefault(job.seed, []).append(tensors[name])

    def by_place(self, name: str) -> dict[tuple[int, int], float]:
        """A score of each image, means over runs."""
        collected: dict[tuple[int, int], list[float]] = {}
        for place, value in zip(self.places, self.values[name], strict=True):
            collected.setdefault(place, []).append(value)
        return {place: float(np.mean(values)) for place, values in collected.items()}


def summarise(suite: Suite) -> Report:
    """The report of an evaluation whose jobs are all done.

    Raises:
        ValueError: a job is missing or damaged.
    """
    measurements = _collect(suite)
    tables: dict[int, dict[str, MethodResults]] = {}
    ablation: dict[str, AblationResults] = {}
    for (steps, method), of_method in measurements.items():
        reference = _Reference(suite, measurements[steps, BASE], measurements.get((steps, RENO)))
        results = reference.results(method, of_method)
        if method.startswith(ABLATION):
            is_lora = suite.adapters.info(method) is METHODS[FINETUNE]
            kind = FINETUNE if is_lora else OURS
            ablation[method.removeprefix(ABLATION)] = AblationResults(**vars(results), kind=kind)
        else:
            tables.setdefault(steps, {})[method] = results
    return Report(
        steps=tables,
        recovered_share=_recovered(tables),
        ablation=ablation,
        at_our_reward=at_our_reward(tables[min(tables)], ablation),
        settings=_settings(suite),
    )


def _collect(suite: Suite) -> dict[tuple[int, str], Measurements]:
    samples: dict[tuple[int, str], Measurements] = {}
    for job in suite.jobs:
        result = suite.result(job)
        if result is None:
            raise ValueError(f"{job.file(suite.config.out)} is missing; rerun the evaluation")
        tensors = read_job_tensors(job.file(suite.config.out))
        samples.setdefault((job.steps, job.method), Measurements()).add(job, result, tensors)
    return dict(sorted(samples.items(), key=lambda item: item[0][0]))


def _recovered(tables: Mapping[int, Table]) -> RecoveredShare | None:
    for steps, table in tables.items():
        if RENO in table and OURS in table:
            return RecoveredShare(steps=steps, **vars(table[OURS].recovered_share))
    return None


def _settings(suite: Suite) -> Settings:
    config, accelerator = suite.config, suite.parts.accelerator
    return Settings(
        model=config.model,
        adapters=list(map(str, config.adapters)),
        loras=list(map(str, config.lora)),
        rewards=suite.parts.rewards.weights,
        prompts=len(suite.prompts),
        search_prompts=len(suite.subset),
        multi_step_search_prompts=len(suite.multi_step_subset),
        seeds=config.seeds,
        image_size=suite.parts.size,
        batch_size=config.batch_size,
        precision=config.dtype,
        device=str(accelerator.device),
        processes=accelerator.num_processes,
        diversity=_diversity_title(suite),
    )


def _diversity_title(suite: Suite) -> str:
    if suite.lpips is not None:
        return f"LPIPS (AlexNet) of copies downscaled to {VIEW} x {VIEW} pixels"
    missing = f"no LPIPS weights in {weights_file()}"
    if suite.encoder is None:
        return f"none ({missing}, and no reward has a CLIP)"
    return f"cosine distance of image features of the first reward's CLIP ({missing})"


@dataclass(frozen=True)
class _Reference:
    """What methods at one number of steps are compared with."""

    suite: Suite
    base: Measurements
    reno: Measurements | None

    def results(self, method: str, samples: Measurements) -> MethodResults:
        """The numbers of one method."""
        total, checker = self._compared(samples, TOTAL), self._checker(samples)
        diversity, pixels = _diversities(samples, self.suite.lpips)
        diversity_base, pixels_base = self._diversities_of_base(samples)
        f_squared = samples.values.get("f_squared")
        return MethodResults(
            images=len(samples.places),
            prompts=len({number for number, _ in samples.places}),
            runs=self._runs(samples),
            checker_mean=checker and checker.mean,
            checker_ci=checker and checker.ci,
            checker_gain=checker and checker.gain,
            checker_gain_ci=checker and checker.gain_ci,
            checker=self._categories_of(samples),
            reward_mean=total.mean,
            reward_ci=total.ci,
            reward_gain=total.gain,
            reward_gain_ci=total.gain_ci,
            win_rate=total.win_rate,
            rewards={n: self._compared(samples, n) for n in self.suite.parts.rewards.weights},
            # Whatever else a machine does only ever adds to the time.
            seconds_per_image=min(samples.seconds),
            network_evaluations=samples.forward_passes + samples.backward_passes,
            forward_passes=samples.forward_passes,
            backward_passes=samples.backward_passes,
            diversity=diversity,
            pixel_diversity=pixels,
            diversity_base=diversity_base,
            pixel_diversity_base=pixels_base,
            f_squared=None if f_squared is None else float(np.mean(f_squared)),
            kl=self._kl(method, samples),
            recovered_share=self._recovered_share(samples),
        )

    def _compared(self, samples: Measurements, name: str) -> RewardScore:
        """A reward's mean, and its gain over base on the same prompts and noises."""
        ours, theirs = samples.by_place(name), self.base.by_place(name)
        places = list(ours)
        prompts = self._texts(places)
        differences = [ours[place] - theirs[place] for place in places]
        absolute, gain = mean(list(ours.values()), prompts), mean(differences, prompts)
        first = torch.tensor([theirs[place] for place in samples.places])
        win_rate = compare(first, torch.tensor(samples.values[name])).win_rate
        return RewardScore(**vars(_score(absolute, gain)), win_rate=win_rate)

    def _checker(self, samples: Measurements) -> Score | None:
        """The checker's mean of categories, and its gain over base."""
        if CHECKER not in samples.values:
            return None
        ours, theirs = samples.by_place(CHECKER), self.base.by_place(CHECKER)
        places = list(ours)
        prompts, categories = self._texts(places), self._categories(places)
        absolute = mean(list(ours.values()), prompts, categories)
        gain = mean([ours[place] - theirs[place] for place in places], prompts, categories)
        return _score(absolute, gain)

    def _categories_of(self, samples: Measurements) -> dict[str, float]:
        """The checker's mean of each category."""
        if CHECKER not in samples.values:
            return {}
        ours = samples.by_place(CHECKER)
        return self._by_category(list(ours), list(ours.values()))

    def _runs(self, samples: Measurements) -> list[RunMeans]:
        """Means of each of several adapters."""
        means = []
        for run in sorted(set(samples.runs)):
            rows = [i for i, of in enumerate(samples.runs) if of == run]
            checker = None
            if CHECKER in samples.values:
                places = [samples.places[i] for i in rows]
                values = [samples.values[CHECKER][i] for i in rows]
                checker = self._mean_of_categories(places, values)
            reward = float(np.mean([samples.values[TOTAL][i] for i in rows]))
            means.append(RunMeans(reward_mean=reward, checker_mean=checker))
        return means

    def _recovered_share(self, samples: Measurements) -> Shares:
        """The share of ReNO's gain, on the prompts and noises that ReNO ran on."""
        return Shares(
            reward=self._share_of(samples, TOTAL, _plain_mean),
            checker_mean=self._share_of(samples, CHECKER, self._mean_of_categories),
        )

    def _share_of(
        self,
        samples: Measurements,
        name: str,
        average: Callable[[Sequence[tuple[int, int]], Sequence[float]], float],
    ) -> float | None:
        if self.reno is None or name not in samples.values:
            return None
        found = [s.by_place(name) for s in (self.base, samples, self.reno)]
        places = [place for place in found[2] if place in found[1]]
        if not places:
            return None
        return share_recovered(
            *(average(places, [values[place] for place in places]) for values in found)
        )

    def _kl(self, method: str, samples: Measurements) -> float | None:
        """KL of the noise's distribution from N(0, I) in nats; None where it is unknown."""
        if method == BASE:
            return 0.0
        entry = self.suite.adapters.info(method)
        if entry.candidates is not None:
            return best_of_kl(entry.candidates)
        if entry is METHODS[OURS]:
            terms = [self.suite.kl(method, run) for run in sorted(set(samples.runs))]
            if None not in terms:
                return float(np.mean([t["kl"] for t in terms]))
        return None

    def _diversities_of_base(self, samples: Measurements) -> tuple[float | None, float | None]:
        """Those of base on the prompts of the method."""
        numbers = {number for number, _ in samples.places}
        order = list(dict.fromkeys(number for number, _ in self.base.places))
        rows = [row for row, number in enumerate(order) if number in numbers]
        return _diversities(self.base, self.suite.lpips, rows)

    def _texts(self, places: Sequence[tuple[int, int]]) -> list[str]:
        return [self.suite.prompts[number] for number, _ in places]

    def _categories(self, places: Sequence[tuple[int, int]]) -> list[str]:
        return [self.suite.captions[number].category for number, _ in places]

    def _by_category(
        self, places: Sequence[tuple[int, int]], values: Sequence[float]
    ) -> dict[str, float]:
        by_category: dict[str, list[float]] = {}
        for category, value in zip(self._categories(places), values, strict=True):
            by_category.setdefault(category, []).append(value)
        return {category: float(np.mean(members)) for category, members in by_category.items()}

    def _mean_of_categories(
        self, places: Sequence[tuple[int, int]], values: Sequence[float]
    ) -> float:
        return float(np.mean(list(self._by_category(places, values).values())))


def _plain_mean(places: Sequence[tuple[int, int]], values: Sequence[float]) -> float:
    return float(np.mean(values))


def _diversities(
    samples: Measurements, lpips: Lpips | None, rows: Sequence[int] | None = None
) -> tuple[float | None, float | None]:
    """LPIPS, else the distance of features; and that of small copies. Means over runs; None if
    unknown.

    Args:
        rows: of the prompts that count; None: all.
    """

    def average(name: str, of: Callable[[Tensor], float | None]) -> float | None:
        found = []
        for seeds in samples.tensors.get(name, {}).values():
            images = torch.stack([torch.cat(parts) for parts in seeds.values()])
            found.append(of(images if rows is None else images[:, rows]))
        return None if not found or None in found else float(np.mean(found))

    perceived = average(FEATURES, diversity) if lpips is None else average(VIEWS, lpips.diversity)
    return perceived, average(COPIES, pixel_diversity)


def _score(absolute: Mean, gain: Mean) -> Score:
    return Score(
        mean=absolute.value, ci=_interval(absolute), gain=gain.value, gain_ci=_interval(gain)
    )


def _interval(of: Mean) -> Interval | None:
    """Both ends; None if unknown."""
    return (of.low, of.high) if math.isfinite(of.low) else None
