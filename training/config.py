"""What a training run is told."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of one run; the defaults are the recipe of tiny-sprint.

    Raises:
        ValueError: a value is out of its range.
    """

    steps: int = 800
    """Optimizer steps."""
    batch_size: int = 24
    """Images per step, each with a prompt and a fresh noise of its own."""
    rank: int = 16
    """Rank of every LoRA branch."""
    alpha: float = 32.0
    """LoRA scale times rank."""
    learning_rate: float = 1.5e-3
    """Peak learning rate of AdamW."""
    warmup_steps: int = 80
    """Steps of linear warm-up; a linear decay follows."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this L2 norm."""
    image_grad_quantile: float = 0.3
    """Each image's gradient at its modulated noise is clipped to this quantile (above 0, at most 1)
    of the norms in the batch; 1 clips nothing. A few images near a change of layout have gradients
    a hundred times the median's, which would drown all others."""
    penalty_weight: float = 1.0
    """Weight of mean(f^2) against the reward."""
    max_seconds: float | None = None
    """Wall-clock limit in seconds: the schedule shortens so that the run ends in time."""
    seed: int = 0
    """Seed of weights, prompts and noise."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "rank", "alpha", "learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("warmup_steps", "penalty_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        if not 0 < self.image_grad_quantile <= 1:
            raise ValueError(
                f"image_grad_quantile must be above 0 and at most 1, not {self.image_grad_quantile}"
            )
        if self.max_seconds is not None and self.max_seconds <= 0:
            raise ValueError(f"max_seconds must be above 0, not {self.max_seconds}")
