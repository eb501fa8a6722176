"""The processes that share a run: `accelerate launch` or `torchrun` starts them, on one or many
machines; a command that is started alone is one process."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

SLOWEST = timedelta(hours=3)
"""How long the others wait for one process, which may be encoding prompts for all."""


def join() -> Accelerator:
    """This process's place among them, and its device."""
    waiting = InitProcessGroupKwargs(timeout=SLOWEST)
    return Accelerator(cpu=not _has_device(), kwargs_handlers=[waiting])


def _has_device() -> bool:
    """Whether there is more than a CPU, without which accelerate has to be told so."""
    return (
        torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()
    )
