"""What a pass costs, counted: operations and memory, not seconds, so that any machine will do."""

import copy
import importlib.util
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model

from hypernoise.training.memory import LiveBytes

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WORSE = 1.5
"""Times the recorded ratio that is still accepted."""

RECORDED = {
    "sana_sprint": {
        "flops over base": 0.032,
        "bytes over base": 0.026,
        "flops over peft": 0.1,
        "bytes over peft": 0.038,
    },
    "flux": {
        "flops over base": 0.12,
        "bytes over base": 0.109,
        "flops over peft": 0.325,
        "bytes over peft": 0.17,
    },
    "sd_turbo": {
        "flops over base": 0.074,
        "bytes over base": 0.244,
        "flops over peft": 0.188,
        "bytes over peft": 0.217,
    },
}
"""By family: FLOPs and allocated bytes that a pass takes beyond the plain network's, over all that
the plain network takes (`base`), and over what peft's layers with the same adapter take beyond it
(`peft`)."""


def load_timing():
    spec = importlib.util.spec_from_file_location("timing", BENCHMARKS / "timing.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Allocated(LiveBytes):
    """All bytes that were ever allocated inside it."""

    total = 0

    def _count(self, storage):
        super()._count(storage)
        self.total += storage.nbytes()


def costs(run):
    with Allocated() as allocated:
        run()
    return {"flops": load_timing().flops(run), "bytes": allocated.total}


def ratios(tiny):
    f = tiny.hypernetwork(rank=4)
    with_peft = copy.deepcopy(tiny.network)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(f.layer_names))
    inject_adapter_in_model(config, with_peft)
    inputs = (tiny.noise, tiny.conditioning)
    with torch.no_grad():
        ours = costs(lambda: f(tiny.network, *inputs))
        others = {
            "base": costs(lambda: tiny.family.predict(tiny.network, *inputs)),
            "peft": costs(lambda: tiny.family.predict(with_peft, *inputs)),
        }
    base, peft = others["base"], others["peft"]
    added = {kind: ours[kind] - base[kind] for kind in ours}
    return {
        **{f"{kind} over base": added[kind] / base[kind] for kind in ours},
        **{f"{kind} over peft": added[kind] / (peft[kind] - base[kind]) for kind in ours},
    }


def test_a_pass_costs_no_more_than_was_recorded(tiny):
    found = ratios(tiny)
    recorded = RECORDED[tiny.family.name]
    assert found.keys() == recorded.keys()
    assert {name: value for name, value in found.items() if value > WORSE * recorded[name]} == {}
