"""From jobs to the numbers of report.json."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...hypernoise_core.rewards import compare
from .adapters import ABLATION
from .jobs import COPIES, FEATURES, VIEWS, Job, JobResult, read_job_tensors
from .lpips import VIEW, Lpips, weights_file
from .method_table import BASE, FINETUNE, METHODS, OURS, RENO
from .metrics import Mean, best_of_kl, diversity, mean, pixel_diversity, share_recovered
from .suite import Suite
from .trade_offs import at_our_reward

TOTAL = "total"
"""What the weighted sum of the rewards is called among them."""
CHECKER = "checker"


@dataclass
class Measurements:
    """All images of a method at one number of steps."""

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


def summarise(suite: Suite) -> dict[str, Any]:
    """What report.json holds.

    `steps.N.METHOD` for each method at each number of steps, `ablation.NAME` for each adapter of
    the ablation, `recovered_share` of HyperNoise at the fewest steps at which ReNO ran,
    `at_our_reward` of fine-tuned generators, and the settings. Numbers that are unknown are None.
    """
    samples = _collect(suite)
    tables: dict[str, dict[str, Any]] = {}
    ablation = {}
    for (steps, method), of_method in samples.items():
        reference = _Reference(suite, samples[steps, BASE], samples.get((steps, RENO)))
        entry = reference.entry(method, of_method)
        if method.startswith(ABLATION):
            is_lora = suite.adapters.info(method) is METHODS[FINETUNE]
            kind = FINETUNE if is_lora else OURS
            ablation[method.removeprefix(ABLATION)] = {"kind": kind, **entry}
        else:
            tables.setdefault(str(steps), {})[method] = entry
    fewest = tables[str(min(map(int, tables)))]
    return {
        "steps": tables,
        "recovered_share": _recovered(tables),
        "ablation": ablation,
        "at_our_reward": at_our_reward(fewest, ablation),
        "settings": _settings(suite),
    }


def _collect(suite: Suite) -> dict[tuple[int, str], Measurements]:
    samples: dict[tuple[int, str], Measurements] = {}
    for job in suite.jobs:
        result = suite.result(job)
        if result is None:
            raise ValueError(f"{job.file(suite.config.out)} is missing; run the evaluation again")
        tensors = read_job_tensors(job.file(suite.config.out))
        samples.setdefault((job.steps, job.method), Measurements()).add(job, result, tensors)
    return dict(sorted(samples.items(), key=lambda item: item[0][0]))


def _recovered(tables: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    for steps, table in tables.items():
        if RENO in table and OURS in table:
            return {"steps": int(steps), **table[OURS]["recovered_share"]}
    return None


def _settings(suite: Suite) -> dict[str, Any]:
    config = suite.config
    return {
        "model": config.model,
        "adapters": [str(path) for path in config.adapters],
        "loras": [str(path) for path in config.lora],
        "rewards": suite.parts.rewards.weights,
        "prompts": len(suite.prompts),
        "search_prompts": len(suite.subset),
        "multi_step_search_prompts": len(suite.multi_step_subset),
        "seeds": config.seeds,
        "image_size": list(suite.parts.size),
        "batch_size": config.batch_size,
        "precision": config.dtype,
        "device": str(suite.parts.accelerator.device),
        "processes": suite.parts.accelerator.num_processes,
        "diversity": _diversity_title(suite),
    }


def _diversity_title(suite: Suite) -> str:
    if suite.lpips is not None:
        return f"LPIPS (AlexNet) of copies of {VIEW} x {VIEW} pixels"
    missing = f"LPIPS has no weights in {weights_file()}"
    if suite.encoder is None:
        return f"none ({missing}, and no reward has a CLIP)"
    return f"cosine distance of image features of the first reward's CLIP ({missing})"


@dataclass(frozen=True)
class _Reference:
    """What methods at one number of steps are held against."""

    suite: Suite
    base: Measurements
    reno: Measurements | None

    def entry(self, method: str, samples: Measurements) -> dict[str, Any]:
        """The numbers of one method."""
        names = [TOTAL, *self.suite.parts.rewards.weights]
        rewards = {name: self._compared(samples, name) for name in names}
        total = rewards[TOTAL]
        checker = self._checker(samples)
        return {
            "images": len(samples.places),
            "prompts": len({number for number, _ in samples.places}),
            "runs": self._runs(samples),
            **checker,
            "reward_mean": total["mean"],
            "reward_ci": total["ci"],
            "reward_gain": total["gain"],
            "reward_gain_ci": total["gain_ci"],
            "win_rate": total["win_rate"],
            "rewards": {name: rewards[name] for name in names[1:]},
            # Whatever else a machine does only ever adds to the time.
            "seconds_per_image": min(samples.seconds),
            "network_evaluations": samples.forward_passes + samples.backward_passes,
            "forward_passes": samples.forward_passes,
            "backward_passes": samples.backward_passes,
            **_diversities(samples, self.suite.lpips),
            **{f"{name}_base": value for name, value in self._diversities_of_base(samples).items()},
            "f_squared": float(np.mean(samples.values["f_squared"]))
            if "f_squared" in samples.values
            else None,
            "kl": self._kl(method, samples),
            "recovered_share": self._recovered_share(samples),
        }

    def _compared(self, samples: Measurements, name: str) -> dict[str, Any]:
        """A reward's mean, and its gain over base on the same prompts and noises."""
        ours, theirs = samples.by_place(name), self.base.by_place(name)
        places = list(ours)
        prompts = self._texts(places)
        differences = [ours[place] - theirs[place] for place in places]
        absolute, gain = mean(list(ours.values()), prompts), mean(differences, prompts)
        first = torch.tensor([theirs[place] for place in samples.places])
        win_rate = compare(first, torch.tensor(samples.values[name])).win_rate
        return {
            "mean": absolute.value,
            "ci": _interval(absolute),
            "gain": gain.value,
            "gain_ci": _interval(gain),
            "win_rate": win_rate,
        }

    def _checker(self, samples: Measurements) -> dict[str, Any]:
        """The checker's mean of categories, the categories, and the gain over base."""
        if CHECKER not in samples.values:
            return dict.fromkeys(("checker_mean", "checker_ci", "checker_gain"), None) | {
                "checker_gain_ci": None,
                "checker": {},
            }
        ours, theirs = samples.by_place(CHECKER), self.base.by_place(CHECKER)
        places = list(ours)
        prompts, categories = self._texts(places), self._categories(places)
        by_category: dict[str, list[float]] = {}
        for place, category in zip(places, categories, strict=True):
            by_category.setdefault(category, []).append(ours[place])
        absolute = mean(list(ours.values()), prompts, categories)
        gain = mean([ours[place] - theirs[place] for place in places], prompts, categories)
        return {
            "checker_mean": absolute.value,
            "checker_ci": _interval(absolute),
            "checker_gain": gain.value,
            "checker_gain_ci": _interval(gain),
            "checker": {name: float(np.mean(values)) for name, values in by_category.items()},
        }

    def _runs(self, samples: Measurements) -> list[dict[str, float]]:
        """Means of each of several adapters."""
        means = []
        for run in sorted(set(samples.runs)):
            rows = [i for i, of in enumerate(samples.runs) if of == run]
            numbers = {"reward_mean": float(np.mean([samples.values[TOTAL][i] for i in rows]))}
            if CHECKER in samples.values:
                places = [samples.places[i] for i in rows]
                values = [samples.values[CHECKER][i] for i in rows]
                numbers["checker_mean"] = self._mean_of_categories(places, values)
            means.append(numbers)
        return means

    def _recovered_share(self, samples: Measurements) -> dict[str, float | None]:
        """The share of ReNO's gain, on the prompts and noises that ReNO was run on."""
        if self.reno is None:
            return {"reward": None, "checker_mean": None}
        shares: dict[str, float | None] = {"checker_mean": None}
        for key, name in (("reward", TOTAL), ("checker_mean", CHECKER)):
            if name not in samples.values:
                continue
            found = [s.by_place(name) for s in (self.base, samples, self.reno)]
            places = [place for place in found[2] if place in found[1]]
            if not places:
                shares[key] = None
                continue
            average = self._mean_of_categories if name == CHECKER else _plain_mean
            shares[key] = share_recovered(
                *(average(places, [values[place] for place in places]) for values in found)
            )
        return shares

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

    def _diversities_of_base(self, samples: Measurements) -> dict[str, float | None]:
        """Those of base on the prompts of the method."""
        numbers = {number for number, _ in samples.places}
        order = list(dict.fromkeys(number for number, _ in self.base.places))
        rows = [row for row, number in enumerate(order) if number in numbers]
        return _diversities(self.base, self.suite.lpips, rows)

    def _texts(self, places: Sequence[tuple[int, int]]) -> list[str]:
        return [self.suite.prompts[number] for number, _ in places]

    def _categories(self, places: Sequence[tuple[int, int]]) -> list[str]:
        return [self.suite.captions[number].category for number, _ in places]

    def _mean_of_categories(
        self, places: Sequence[tuple[int, int]], values: Sequence[float]
    ) -> float:
        by_category: dict[str, list[float]] = {}
        for category, value in zip(self._categories(places), values, strict=True):
            by_category.setdefault(category, []).append(value)
        return float(np.mean([np.mean(members) for members in by_category.values()]))


def _plain_mean(places: Sequence[tuple[int, int]], values: Sequence[float]) -> float:
    return float(np.mean(values))


def _diversities(
    samples: Measurements, lpips: Lpips | None, rows: Sequence[int] | None = None
) -> dict[str, float | None]:
    """LPIPS, else the distance of features; and that of small copies. Means over runs; None where
    they are unknown.

    Args:
        rows: of the prompts that count; None: all.
    """

    def average(name: str, of: Callable[[Tensor], float | None]) -> float | None:
        found = []
        for seeds in samples.tensors.get(name, {}).values():
            images = torch.stack([torch.cat(parts) for parts in seeds.values()])
            found.append(of(images if rows is None else images[:, rows]))
        return None if not found or None in found else float(np.mean(found))

    return {
        "diversity": average(FEATURES, diversity)
        if lpips is None
        else average(VIEWS, lpips.diversity),
        "pixel_diversity": average(COPIES, pixel_diversity),
    }


def _interval(of: Mean) -> list[float] | None:
    """Both ends; None where they are unknown."""
    return [of.low, of.high] if math.isfinite(of.low) else None
