"""The head of LAION's aesthetic predictor, which ImageReward took over."""

from __future__ import annotations

from torch import Tensor, nn


class ScoreHead(nn.Module):
    """Five linear layers without anything between them that acts outside training."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, 1)."""
        return self.layers(features)
