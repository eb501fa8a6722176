"""Settings of ReNO; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RenoConfig:
    """Settings of the search; the defaults are the paper's.

    Raises:
        ValueError: a value is out of its range.
    """

    iterations: int = 50
    """Gradient ascent steps; each costs a forward and a backward pass."""
    learning_rate: float = 5.0
    """Learning rate of the gradient ascent, which has a Nesterov momentum of 0.9."""
    max_grad_norm: float = 0.1
    """Maximum L2 norm of each image's gradient."""
    penalty_weight: float = 0.01
    """Weight of the penalty on noise whose norm is unlikely under N(0, 1)."""
    patience: int = 0
    """Stop after this many iterations without a better score for any image; 0 never stops early."""

    def __post_init__(self) -> None:
        for name in ("iterations", "learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("penalty_weight", "patience"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
