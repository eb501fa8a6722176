"""`hypernoise info`: the metadata and the size of an adapter."""

import json
from dataclasses import asdict

from ...hypernoise_core.adapter import open_adapter
from .settings import InfoConfig


def run(config: InfoConfig) -> None:
    """Prints the metadata and the size of a noise hypernetwork or LoRA, as JSON."""
    loaded = open_adapter(config.adapter, alpha=config.alpha)
    weights = sum(parameter.numel() for parameter in loaded.parameters())
    facts = {"kind": loaded.kind, **asdict(loaded.metadata), "layers": len(loaded.layer_names)}
    print(json.dumps({**facts, "weights": weights}, indent=2, default=str))
