"""The processes of a distributed run, which `accelerate launch` or `torchrun` starts on one or
more machines. A command that is run directly is a single process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

SLOWEST = timedelta(hours=3)
"""Timeout before training, while one process may be encoding prompts for all."""
IN_TRAINING = timedelta(minutes=30)
"""Timeout during training, while one process may be writing to a slow disk."""


def join() -> Accelerator:
    """The rank and the device of this process."""
    waiting = InitProcessGroupKwargs(timeout=SLOWEST)
    return Accelerator(cpu=not _has_device(), kwargs_handlers=[waiting])


def expect_answers() -> None:
    """From now on, a process that does not respond for `IN_TRAINING` counts as lost."""
    if dist.is_available() and dist.is_initialized():
        c10d = dist.distributed_c10d
        old_name = "_set_pg_timeout"  # of torch before 2.14
        set_timeout = getattr(c10d, "set_timeout", None) or getattr(c10d, old_name)
        set_timeout(IN_TRAINING)


@contextmanager
def naming_lost_processes() -> Iterator[None]:
    """Turn an error in the block that comes from the loss of another process into a clear one.

    Raises:
        ConnectionError: another process has died or hangs.
    """
    try:
        yield
    except RuntimeError as error:
        if not (type(error).__name__.startswith("Dist") or "gloo" in str(error)):
            raise
        reason = str(error).splitlines()[0]
        raise ConnectionError(
            f"another process of this run has died or hangs ({reason}): stop the remaining "
            f"processes; --resume continues from the last checkpoint"
        ) from error


def _has_device() -> bool:
    """Whether there is an accelerator; without one, accelerate must be told to use the CPU."""
    return (
        torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()
    )
