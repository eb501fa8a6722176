"""`hypernoise train`: a run in a folder, which may stop at any point and be resumed.

The folder holds config.toml, metrics.jsonl, report.html, checkpoints/, evaluations/, the adapter as
of the last checkpoint (hypernoise.safetensors, or lora.safetensors of a fine-tune), and as of the
best evaluation (best.safetensors). A lock on it (.lock) is held while a process trains there.
"""

from __future__ import annotations

import errno
import hashlib
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ...hypernoise_core.adapter import save_adapter
from ...hypernoise_core.atomic_file import remove_temporary_files, write_atomically
from ...hypernoise_core.divergence import kl_terms, lipschitz_estimate
from ...hypernoise_core.errors import RewardError
from ...hypernoise_core.generator_lora import save_generator_lora
from ...hypernoise_core.hypernetwork import sample_noise
from .. import writable
from ..checkpoints import BEST, BestCheckpoint, Checkpoints, damaged
from ..config import TrainingConfig
from ..config_files import to_toml
from ..estimate import estimate
from ..locking import lock
from ..parts import TrainingParts, prepare_training
from ..processes import expect_answers, naming_lost_processes
from ..progress import progress_bar
from ..tracking import FILE as METRICS
from ..tracking import MetricsLog
from ..trainer import Metrics
from ..validation.held_out import FOLDER as PICTURES
from ..validation.held_out import HeldOut
from ..validation.run_report import PAGE, write_run_report
from ..validation.watch import NONE, default_watch, get_measure, hacking_warning
from .settings import TrainCommand

CONFIG = "config.toml"
"""The settings of the run."""
KL_IMAGES = 4
"""Noises at which an evaluation estimates the KL."""

_CHECKPOINTS = "checkpoints"
_EVALUATION_SEED = 600_000_000
_FREE_ON_RESUME = {  # settings that may change when a run is resumed
    "steps",
    "epochs",
    "max_seconds",
    "use_checkpoint",
    "memsave",
    "shard",
    "data_dir",
    "log_every",
    "noise_prompt",
    "viz_noise",
    "tracker",
    "save_every",
    "keep_last",
    "cache_dir",
    "rewards_folder",
    "save_dir",
}


def run(command: TrainCommand) -> None:
    """Trains and prints the adapter's path; with `dry_run` prints what a run would need.

    Raises:
        SystemExit: a signal has stopped the run; with 128 + its number.
    """
    config = command.config
    if command.dry_run:
        print(to_toml(config))
        print("\n".join(estimate(config, num_processes=command.processes).lines()))
        return
    with naming_lost_processes():
        begun = start(config, resume=command.resume)
        path = begun.train()
    if begun.is_main:
        print(path.resolve())
    if begun.stopped_by is None:
        return
    if begun.is_main:
        print(
            f"hypernoise: stopped by {begun.stopped_by.name} after update {begun.trainer.step} of "
            f"{begun.trainer.plan.steps}; --resume continues from there",
            file=sys.stderr,
        )
    raise SystemExit(128 + begun.stopped_by)


def start(config: TrainingConfig, *, resume: bool = False) -> Run:
    """A run that is ready to train.

    Args:
        resume: continue from the newest checkpoint in the run's folder; start if there is none.

    Raises:
        ValueError: the folder holds a run and `resume` is not asked for, or one with other settings
            or prompts; or as `prepare` raises it.
        OSError: the folder cannot be written, or is of no run and holds what a run would replace;
            or as `prepare` raises it.
    """
    writable.check_folder(config.save_dir, "--save_dir")
    checkpoints = Checkpoints(config.save_dir / _CHECKPOINTS, 1).paths()
    if not (checkpoints or _was_begun(config)):
        names = (CONFIG, BEST, f"{_adapter_name(config)}.safetensors", PAGE)
        writable.check_others(config.save_dir, "--save_dir", names)
    if not resume and checkpoints:
        raise ValueError(
            f"{config.save_dir} already contains a run: add --resume to continue it, or choose "
            f"another --save_dir"
        )
    return Run(config, prepare_training(config))


def _was_begun(config: TrainingConfig) -> bool:
    """Whether a run has begun in the folder, which may have ended before its first checkpoint."""
    if (config.save_dir / METRICS).is_file():
        return True
    file = config.save_dir / CONFIG
    return file.is_file() and file.read_bytes() == to_toml(config).encode()


def _adapter_name(config: TrainingConfig) -> str:
    return "lora" if config.train_type == "finetune" else "hypernoise"


class Run:
    """A training run and its folder; it continues from the newest checkpoint there.

    Args:
        parts: from `prepare_training`.

    Raises:
        OSError: the folder cannot be written.
        ValueError: the checkpoint is of other settings or prompts, or another process trains there.
    """

    def __init__(self, config: TrainingConfig, parts: TrainingParts) -> None:
        self.config, self.parts, self.folder = config, parts, config.save_dir
        self.is_main = parts.accelerator.is_main_process
        refusal = (
            f"{self.folder}: another process is training there; wait for it, stop it, or choose "
            f"another --save_dir"
        )
        self._lock = lock(self.folder / ".lock", refusal) if self.is_main else None
        torch.manual_seed(config.seed)  # for what draws without a generator; loading has drawn
        self.trainer = parts.trainer(config)
        self.checkpoints = Checkpoints(self.folder / _CHECKPOINTS, config.keep_last)
        self.evaluations: list[Metrics] = []
        self.best = BestCheckpoint(self.folder)
        self._evaluated = 0  # the update of the last evaluation
        self._recorded = 0  # the last update that metrics.jsonl has
        self._fingerprint = _fingerprint(config, parts)
        if self.checkpoints.paths():
            self._load()
        self.stopped_by: signal.Signals | None = None
        self.log = self._open_log() if self.is_main else None
        self.held_out = self._held_out() if config.log_every and parts.prompts.held_out else None

    def _open_log(self) -> MetricsLog:
        for folder in (self.folder, self.checkpoints.folder, self.folder / PICTURES):
            remove_temporary_files(folder)
        write_atomically(self.folder / CONFIG, to_toml(self.config).encode())
        goes_on = (self.folder / METRICS).is_file()
        log = MetricsLog(self.folder, self.config.tracker, asdict(self.config))
        if goes_on:
            log.rewind(self.trainer.step, self._evaluated)
        return log

    def _held_out(self) -> HeldOut:
        config, parts = self.config, self.parts
        prompts, device = parts.prompts.held_out, parts.accelerator.device
        name = config.watch_reward or default_watch(
            config.rewards, config.model, prompts, config.rewards_folder
        )
        dtype = getattr(torch, config.precision)
        watched = None if name == NONE else get_measure(name, config.rewards_folder, dtype, device)
        return HeldOut(
            pipeline=parts.pipeline,
            prompts=prompts,
            conditioning=parts.features.rows(prompts),
            noise_conditioning=parts.features.rows([config.noise_prompt]),
            seeds=[_EVALUATION_SEED + i for i in range(len(prompts))],
            size=parts.size,
            rewards=parts.rewards,
            watched=watched,
            batch_size=-(-config.batch_size // parts.accelerator.num_processes),
            viz_noise=config.viz_noise,
        )

    def train(self) -> Path:
        """Trains to the end, or until SIGTERM or Ctrl-C; returns the adapter's file.

        An error leaves a checkpoint of the last update that was done and recorded.

        Raises:
            OSError: a file could not be written; names it.
            ValueError: the memory is too small, or a reward fails; names the reward.
        """
        expect_answers()
        try:
            self._train()
            self._save_checkpoint(last=True)
            if self.log is not None:
                self.log.close()
                self._write_report()
        except Exception as error:
            if (explained := self._explained(error)) is None:
                raise
            raise explained from error
        finally:
            if self._lock is not None:
                self._lock.release()
        return self.adapter_file

    def _train(self) -> None:
        trainer = self.trainer
        bar = progress_bar(
            total=trainer.plan.steps,
            initial=trainer.step,
            desc="training",
            unit="update",
            disable=not self.is_main,
        )
        with bar, self._stopping_on_signals(), self._saving_on_errors():
            self._evaluate_if_due()
            for metrics in trainer.updates():
                bar.update()
                bar.set_postfix_str(
                    f"reward {metrics['reward']:.3f}, penalty {metrics['penalty']:.3f}"
                )
                self._after_update(metrics)
            if self.stopped_by is None:
                self._evaluate_if_due(at_the_end=True)

    @property
    def adapter_file(self) -> Path:
        return self.folder / f"{_adapter_name(self.config)}.safetensors"

    @contextmanager
    def _stopping_on_signals(self) -> Iterator[None]:
        """SIGTERM and the first Ctrl-C end the run after the current update."""

        def stop(number: int, frame: object) -> None:
            self.stopped_by = signal.Signals(number)
            self.trainer.stop()
            signal.signal(number, before[number])

        handled = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, stop) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _after_update(self, metrics: Metrics) -> None:
        step = self.trainer.step
        if self.log is not None:
            self.log.write(step, metrics)
        self._recorded = step
        if step == self.trainer.plan.steps:
            return  # `train` does the rest
        self._evaluate_if_due()
        if step % self.config.save_every == 0:
            self._save_checkpoint()

    @contextmanager
    def _saving_on_errors(self) -> Iterator[None]:
        """Keeps what was done since the last checkpoint."""
        try:
            yield
        except Exception:
            if self.trainer.is_whole and self._recorded == self.trainer.step > 0:
                self._save_checkpoint()
            raise

    def _explained(self, error: Exception) -> Exception | None:
        """What ended the run and what to do about it; None where the traceback says more."""
        update = f"after update {self.trainer.step}"
        paths = self.checkpoints.paths()
        resume = (
            f"--resume continues from {paths[-1]}" if paths else "start again: no checkpoint yet"
        )
        if isinstance(error, torch.OutOfMemoryError):
            return ValueError(
                f"out of memory {update}: {str(error).splitlines()[0]} --use_checkpoint needs "
                f"less; so does a smaller --batch_size, in a new run. {resume}"
            )
        if isinstance(error, RewardError):
            return ValueError(f"{update}: {error}. {resume}")
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            return OSError(f"{error}: {'free some space there, then ' if full else ''}{resume}")
        return ValueError(f"{error}. {resume}") if isinstance(error, ValueError) else None

    def _evaluate_if_due(self, at_the_end: bool = False) -> None:
        """Not twice after the same update when a run is resumed."""
        step = self.trainer.step
        if self.held_out is None or self._evaluated == step:
            return
        if at_the_end or step % self.config.log_every == 0:
            self._evaluate()
            self._evaluated = step

    def _evaluate(self) -> None:
        """In all processes together; the main one writes."""
        evaluation = self.held_out.measure(self.trainer.trained)
        metrics = evaluation.metrics() | self._divergence()
        if self.log is None:
            return
        step = self.trainer.step
        self.log.write(step, metrics, kind="evaluation")
        for title, path in evaluation.write_pictures(self.folder / PICTURES, step).items():
            self.log.picture(step, title, path)
        self.best.update(metrics["evaluation/total"], self._save_adapter)
        self._write_report()
        self.evaluations.append({"step": step, **metrics})
        self._warn()

    def _divergence(self) -> Metrics:
        """How far the noise's distribution has moved, and how well the penalty measures that."""
        f = self.trainer.trained
        if self.config.train_type == "finetune" or not f.has_kl:
            return {}
        device = self.parts.accelerator.device
        prompts, seeds = self.held_out.prompts[:KL_IMAGES], self.held_out.seeds[:KL_IMAGES]
        rows = self.parts.features.rows(prompts)
        conditioning = {name: tensor.to(device) for name, tensor in rows.items()}
        noise = sample_noise(self.trainer.latent_shape, seeds, device=device)

        def delta(x: torch.Tensor) -> torch.Tensor:
            return f(self.trainer.network, x, conditioning)

        generator = torch.Generator().manual_seed(self.config.seed)
        kl = kl_terms(delta, noise, generator=generator)
        lipschitz = lipschitz_estimate(delta, noise, generator=generator)
        return {
            "kl/l2": float(kl.l2.mean()),
            "kl/remainder": float(kl.remainder.mean()),
            "kl/remainder_share": kl.remainder_share,
            "kl/total": float(kl.kl.mean()),
            "kl/lipschitz": float(lipschitz.max()),
        }

    def _warn(self) -> None:
        watched = self.held_out.watched
        if watched and (text := hacking_warning(self.evaluations, watched=watched.name)):
            tqdm.write(f"warning: {text}", file=sys.stderr)

    def _write_report(self) -> None:
        config, plan = self.config, self.trainer.plan
        rewards = ", ".join(f"{weight:g} x {name}" for name, weight in config.rewards.items())
        summary = [
            f"A {self.trainer.adapter.kind} for {config.model}, trained for {self.trainer.step} of "
            f"{plan.steps} updates on {len(plan.prompts)} prompts against {rewards}."
        ]
        write_run_report(self.folder, f"Training {self.folder.name}", summary)

    def _save_adapter(self, path: Path) -> None:
        save = save_adapter if self.config.train_type == "noise" else save_generator_lora
        save(self.trainer.trained, path)

    def _save_checkpoint(self, last: bool = False) -> None:
        """If it fails the run continues with the earlier checkpoints, except at the end."""
        if not self.is_main:
            return
        state = self.trainer.state_dict() | {
            "fingerprint": self._fingerprint,
            "length": self._length,
            "evaluations": self.evaluations,
            "best": self.best.reward,
        }
        try:
            self.checkpoints.save(self.trainer.step, state, self._save_adapter)
            self._save_adapter(self.adapter_file)
        except OSError as error:
            if last:
                raise
            tqdm.write(f"warning: no checkpoint at update {self.trainer.step}: {error}", sys.stderr)

    def _load(self) -> None:
        state, path = self.checkpoints.load_newest(), self.checkpoints.paths()[-1]
        try:
            known = dict(state["fingerprint"])
        except (LookupError, TypeError, ValueError) as error:
            raise damaged(path, error) from error
        self._check_settings(known)
        try:
            self._take_over(state)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise damaged(path, error) from error

    def _check_settings(self, known: dict[str, Any]) -> None:
        own = self._fingerprint
        changed = [name for name, value in own.items() if known.get(name, value) != value]
        if changed:
            differences = ", ".join(
                f"{name} was {known[name]!r} and is {own[name]!r}" for name in changed
            )
            raise ValueError(
                f"{self.folder} was started with other settings: {differences}. Use the earlier "
                f"settings, or choose another --save_dir"
            )

    def _take_over(self, state: dict[str, Any]) -> None:
        if not isinstance(state["step"], int):
            raise TypeError(f"its step is {state['step']!r}")
        self.evaluations, best = list(state["evaluations"]), state["best"]
        self._evaluated = self.evaluations[-1]["step"] if self.evaluations else 0
        self.trainer.load_state_dict(state)
        self._recorded = self.trainer.step
        if "length" in state:  # earlier versions did not note it
            self._tell_of_new_length(state["length"])
        if not self.best.resume(best):
            self.parts.accelerator.print(
                f"warning: {self.best.path} is missing: the next best evaluation writes it",
                file=sys.stderr,
            )

    @property
    def _length(self) -> dict[str, float | None]:
        """What the run's schedule is planned for."""
        return {"steps": self.trainer.plan.steps, "max_seconds": self.config.max_seconds}

    def _tell_of_new_length(self, before: dict[str, Any]) -> None:
        """Warn of what another length does to a schedule that depends on it."""
        now, schedule = self._length, self.config.schedule
        if now == before or schedule == "constant":
            return
        rates = [self.trainer.learning_rate_if_planned(**length) for length in (before, now)]
        self.parts.accelerator.print(
            f"warning: the {schedule} schedule was planned for {_in_words(**before)} and is now "
            f"for {_in_words(**now)}: after update {self.trainer.step} the learning rate is "
            f"{rates[1]:.3g} where it would have been {rates[0]:.3g}",
            file=sys.stderr,
        )


def _in_words(steps: int, max_seconds: float | None) -> str:
    return f"{steps} updates" + (f" or {max_seconds:g} seconds" if max_seconds else "")


def _fingerprint(config: TrainingConfig, parts: TrainingParts) -> dict[str, Any]:
    """What must be unchanged for a run to resume as if it had not stopped."""
    settings = {k: v for k, v in asdict(config).items() if k not in _FREE_ON_RESUME}
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}
    prompts = {"prompts": parts.prompts.training, "held_out": parts.prompts.held_out}
    return plain | {name: _digest(texts) for name, texts in prompts.items()} | parts.identity


def _digest(prompts: list[str]) -> str:
    digest = hashlib.sha256("\0".join(prompts).encode()).hexdigest()
    return f"{len(prompts)} with SHA-256 {digest[:16]}"
