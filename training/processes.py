"""The processes that share a run: `accelerate launch` or `torchrun` starts them, on one or many
machines; a command that is started alone is one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

SLOWEST = timedelta(hours=3)
"""How long the others wait for one process, which may be encoding prompts for all."""
IN_TRAINING = timedelta(minutes=30)
"""How long they wait from then on, while one may be writing to a slow disk."""


def join() -> Accelerator:
    """This process's place among them, and its device."""
    waiting = InitProcessGroupKwargs(timeout=SLOWEST)
    return Accelerator(cpu=not _has_device(), kwargs_handlers=[waiting])


def expect_answers() -> None:
    """From now on a process that does not answer for `IN_TRAINING` counts as lost."""
    if dist.is_available() and dist.is_initialized():
        c10d = dist.distributed_c10d
        old_name = "_set_pg_timeout"  # of torch before 2.14
        set_timeout = getattr(c10d, "set_timeout", None) or getattr(c10d, old_name)
        set_timeout(IN_TRAINING)


@contextmanager
def naming_lost_processes() -> Iterator[None]:
    """Says so where the block fails because another process is gone.

    Raises:
        ConnectionError: another process has ended, or hangs.
    """
    try:
        yield
    except RuntimeError as error:
        if not (type(error).__name__.startswith("Dist") or "gloo" in str(error)):
            raise
        reason = str(error).splitlines()[0]
        raise ConnectionError(
            f"another process of this run has died or hangs ({reason}): end what is left of the "
            f"run; --resume goes on from its last checkpoint"
        ) from error


def _has_device() -> bool:
    """Whether there is more than a CPU, without which accelerate has to be told so."""
    return (
        torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()
    )
