"""How time and memory grow with batch, resolution, rank, hypernetworks and rewards, one at a time.

    .venv/bin/python benchmarks/growth.py [--model tiny-sprint|sana] [--measure passes updates load]

- `passes`: a pass of the hypernetwork relative to the plain network. Weights are random; only the
  first blocks of SANA-Sprint (--whole: all). Several hypernetworks get the same noise, and the sum
  of their outputs is added to it, as in the nodes. `bound` is that of passes.py times their number.
- `updates`: one update of tiny-sprint with its shipped settings, on the device that accelerate
  chooses. Additional rewards are further copies of tiny-preference.
- `load`: an adapter file in the system's cache. `seconds` until the adapter is loaded, whose
  weights are read on first use; `read_seconds` until all of them are on the device.

Seconds are medians of alternating calls; MB (10^6 bytes) are the peak memory beyond what was in use
before. The last line of the output has all results as JSON.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from passes import SIZES, TINY, make
from timing import Run, flops, lora_flops, medians, peak_bytes

from hypernoise.hypernoise_core.adapter import load_adapter, save_adapter
from hypernoise.hypernoise_core.hypernetwork import NoiseHypernetwork, modulate, predict_change
from hypernoise.hypernoise_core.lora import modules_by_name
from hypernoise.hypernoise_core.rewards import Ensemble, WeightStore
from hypernoise.hypernoise_core.rewards.tiny_preference import TinyPreference
from hypernoise.training.config import TrainingConfig
from hypernoise.training.embedded_models import EMBEDDED_ADAPTER
from hypernoise.training.memory import save_memory
from hypernoise.training.parts import prepare_training
from hypernoise.training.published_models import build_on_meta
from hypernoise.training.settings import load_settings
from hypernoise.training.trainer import Trainer

Rows = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Setting:
    """Settings of a pass."""

    batch: int
    size: int
    """Height and width of the images in pixels."""
    rank: int
    hypernetworks: int = 1


SETTINGS = {TINY: Setting(8, 64, 16), "sana": Setting(1, 1024, 128)}
"""Starting points, of which one value at a time is varied."""
RANKS = (4, 16, 64, 128)
_BOTH = {"batch": (1, 2, 4, 8), "rank": RANKS, "hypernetworks": (1, 2, 3)}
PASSES = {TINY: _BOTH | {"size": (64, 128, 256)}, "sana": _BOTH | {"size": (512, 1024, 2048)}}
UPDATES = {"batch_size": (1, 4, 8, 24, 48), "image_size": (64, 128, 256), "lora_rank": RANKS}
REWARDS = {"1": (1,), "1 and redness": (1, ("redness",)), "2": (2,), "4": (4,)}
"""Number of tiny-preference copies, and other rewards."""


def table(title: str, rows: Rows) -> None:
    """Prints rows with the same columns."""
    widths = {column: max(len(column), 9) + 2 for column in next(iter(rows.values()))}
    first = max(map(len, [title, *rows]))
    print(f"\n{title:{first}}" + "".join(f"{column:>{w}}" for column, w in widths.items()))
    for name, row in rows.items():
        cells = (f"{row[column]:{w}.4g}" for column, w in widths.items())
        print(f"{name:{first}}" + "".join(cells), flush=True)


def passes(
    model: str, whole: bool, device: str, dtype: torch.dtype, repeats: int
) -> dict[str, Rows]:
    """Time and memory of both passes, by varied setting and value."""
    family, network, noise, conditioning = make(model, whole, device, dtype)
    found: dict[str, Rows] = {}
    for factor, values in PASSES[model].items():
        found[factor] = {}
        for value in values:
            setting = replace(SETTINGS[model], **{factor: value})
            latent = (side * setting.size // SIZES[model] for side in noise.shape[2:])
            x = torch.randn(setting.batch, noise.shape[1], *latent, device=device)
            c = {name: torch.cat([t] * setting.batch) for name, t in conditioning.items()}
            shape = {"rank": setting.rank, "alpha": 2 * setting.rank}
            several = [
                NoiseHypernetwork.initialise(network, family, **shape).to(device)
                for _ in range(setting.hypernetworks)
            ]
            runs = {
                "plain": partial(family.predict, network, x, c),
                "modulated": partial(_modulated, several, network, x, c),
            }
            added = lora_flops(modules_by_name(network), several[0].branches, runs["plain"])
            bound = len(several) * (1 + added / flops(runs["plain"]))
            weights = sum(p.nbytes for f in several for p in f.parameters())
            row = {"bound": bound, "adapter_MB": weights / 1e6}
            found[factor][str(value)] = _compared(runs, repeats, device) | row
        table(f"{model}, {factor}", found[factor])
    return found


def _modulated(several: list, network: Any, noise: torch.Tensor, conditioning: dict) -> object:
    deltas = (predict_change(f, network, noise, conditioning).delta for f in several)
    return modulate(noise, sum(deltas))


@torch.inference_mode()
def _compared(runs: Mapping[str, Run], repeats: int, device: str) -> dict[str, float]:
    seconds = medians(runs, repeats, device)
    peaks = {name: peak_bytes(run, device) for name, run in runs.items()}
    return {
        "plain_seconds": seconds["plain"],
        "seconds": seconds["modulated"],
        "ratio": seconds["modulated"] / seconds["plain"],
        "plain_MB": peaks["plain"] / 1e6,
        "MB": peaks["modulated"] / 1e6,
        "MB_ratio": peaks["modulated"] / peaks["plain"],
    }


def updates(dtype: torch.dtype, repeats: int) -> dict[str, Rows]:
    """Time and memory of one update, by varied setting and value."""
    found: dict[str, Rows] = {}
    with tempfile.TemporaryDirectory() as folder:
        shipped = vars(load_settings(TrainingConfig, TINY)) | {"log_every": 0}
        shipped |= {"precision": str(dtype).split(".")[1]}
        shipped |= {"save_dir": Path(folder) / "run", "cache_dir": Path(folder) / "cache"}
        for factor, values in UPDATES.items():
            trainers = {str(v): _trainer(shipped | {factor: v}) for v in values}
            found[factor] = _updates_of(trainers, repeats)
            table(f"update, {factor}", found[factor])
        trainers = {name: _trainer(shipped, *rewards) for name, rewards in REWARDS.items()}
        found["rewards"] = _updates_of(trainers, repeats)
        table("update, rewards", found["rewards"])
    return found


def _trainer(settings: dict[str, Any], copies: int = 1, others: tuple[str, ...] = ()) -> Trainer:
    names = ("tiny-preference", *others)
    config = TrainingConfig(**settings | {"rewards": dict.fromkeys(names, 1.0)})
    parts = prepare_training(config)
    members = {name: (reward, 1.0) for name, reward in parts.rewards.members.items()}
    for number in range(1, copies):
        new = TinyPreference.load(WeightStore()).to(parts.accelerator.device)
        new.encoder.fix_texts(members["tiny-preference"][0].encoder.text_features)
        members[f"copy {number}"] = (new, 1.0)
    rewards = Ensemble(members)
    if config.memsave:
        save_memory(rewards)
    return replace(parts, rewards=rewards).trainer(config)


def _updates_of(trainers: Mapping[str, Trainer], repeats: int) -> Rows:
    device = next(iter(trainers.values())).accelerator.device
    runs = {name: trainer.updates().__next__ for name, trainer in trainers.items()}
    seconds = medians(runs, repeats, device)
    rows: Rows = {}
    for name, trainer in trainers.items():
        megabytes, images = peak_bytes(runs[name], device) / 1e6, trainer.config.batch_size
        rows[name] = {"seconds": seconds[name], "seconds_per_image": seconds[name] / images}
        rows[name] |= {"MB": megabytes, "MB_per_image": megabytes / images}
    return rows


def load(device: str, repeats: int) -> Rows:
    """Times the embedded adapter, and one of rank 128 for all blocks of SANA-Sprint."""
    network = build_on_meta("sana").transformer
    sana = NoiseHypernetwork.initialise(network, "sana_sprint", rank=128, alpha=256)
    rows: Rows = {}
    with tempfile.TemporaryDirectory() as folder:
        file = save_adapter(sana, Path(folder) / "sana.safetensors")
        for name, path in {TINY: EMBEDDED_ADAPTER, "sana, rank 128": file}.items():
            runs = {"seconds": partial(load_adapter, path)}
            runs["read_seconds"] = partial(_read, path, device)
            seconds, megabytes = medians(runs, repeats, device), path.stat().st_size / 1e6
            rows[name] = {"MB": megabytes, **seconds}
            rows[name] |= {"read_MB_per_second": megabytes / seconds["read_seconds"]}
    table("load", rows)
    return rows


def _read(path: Path, device: str) -> list[torch.Tensor]:
    return [weight.to(device, copy=True) for weight in load_adapter(path).parameters()]


def choose_dtype(name: str | None, device: str) -> torch.dtype:
    """The dtype of that name; None: bfloat16 on a GPU, else float32."""
    return getattr(torch, name or ("bfloat16" if device == "cuda" else "float32"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    measures = ["passes", "updates", "load"]
    parser.add_argument("--measure", nargs="+", default=measures, choices=measures)
    parser.add_argument("--model", default=TINY, choices=SETTINGS, help="model for the passes")
    parser.add_argument("--whole", action="store_true", help="all blocks")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    device, repeats = options.device, options.repeats
    dtype = choose_dtype(options.dtype, device)
    result: dict[str, Any] = {"threads": torch.get_num_threads(), "device": device}
    result |= {"dtype": str(dtype), "start": asdict(SETTINGS[options.model])}
    if "passes" in options.measure:
        result["passes"] = passes(options.model, options.whole, device, dtype, repeats)
    if "updates" in options.measure:
        result["updates"] = updates(dtype, repeats)
    if "load" in options.measure:
        result["load"] = load(device, repeats)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
