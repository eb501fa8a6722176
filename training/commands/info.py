"""`hypernoise info`: what an adapter file says about itself."""

import json
from dataclasses import asdict

from ...hypernoise_core.generator_lora import GeneratorLora, load_either
from .settings import InfoConfig


def run(config: InfoConfig) -> None:
    """Prints the metadata and the size of a noise hypernetwork or LoRA, as JSON."""
    loaded = load_either(config.adapter, alpha=config.alpha)
    weights = sum(parameter.numel() for parameter in loaded.parameters())
    is_lora = isinstance(loaded, GeneratorLora)
    kind = "LoRA on the generator" if is_lora else "noise hypernetwork"
    facts = {"kind": kind, **asdict(loaded.metadata), "layers": len(loaded.layer_names)}
    print(json.dumps({**facts, "weights": weights}, indent=2, default=str))
