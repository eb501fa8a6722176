"""The exceptions of hypernoise; importing them does not import torch."""

from __future__ import annotations


class HypernoiseError(Exception):
    """Base class of the exceptions that hypernoise defines; the message says what to do.

    Each keeps the standard base class that callers may expect::

        HypernoiseError
        ├── AdapterError (ValueError)
        ├── TensorFileError (ValueError)
        ├── LibraryFolderError (ValueError)
        ├── PatternError (ValueError)
        └── RewardError (RuntimeError)
            └── RewardOutOfMemoryError (torch.OutOfMemoryError), in rewards/ensemble.py

    Wrong arguments are plain ValueErrors, missing files and failed writes are OSErrors, and missing
    packages are ImportErrors.
    """


class AdapterError(HypernoiseError, ValueError):
    """An adapter file that cannot be read, or an adapter that does not fit the network."""


class TensorFileError(HypernoiseError, ValueError):
    """A file of tensors that is damaged, truncated or in an unsupported format."""


class LibraryFolderError(HypernoiseError, ValueError):
    """A model folder that would run code, read files outside itself, or build an oversized network.

    Oversized: larger than the weights in the folder are for.
    """


class PatternError(HypernoiseError, ValueError):
    """A layer pattern in a LoRA configuration that uses unsupported syntax."""


class RewardError(HypernoiseError, RuntimeError):
    """A reward that failed, or returned something other than one score for each image.

    Args:
        name: of the reward.
        problem: what went wrong, as a predicate: the message is "the reward NAME PROBLEM".
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(name, problem)  # as arguments, so that a copy from another process works
        self.name = name

    def __str__(self) -> str:
        name, problem = self.args
        return f"the reward {name} {problem}"
