"""Training reaches what the theory says (arXiv 2508.09968), where that can be worked out.

The objective 1/2 E||f||^2 - E r(g(x0 + f(x0))) stands for KL(p0' || p0) - E r, whose optimum is the
tilted noise p0*(x) ~ p0(x) exp(r(g(x))). The two agree where f is nearly a shift.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.integrate import simpson
from torch import Tensor

from hypernoise.hypernoise_core import families
from hypernoise.hypernoise_core.divergence import exact_kl_terms
from hypernoise.hypernoise_core.rewards import Ensemble
from hypernoise.tests.training.toy import SIDE, LinearReward, NoFeatures, Toy, ToyPipeline
from hypernoise.training.config import TrainingConfig
from hypernoise.training.trainer import Trainer

PIXELS = (3, SIDE, SIDE)


@pytest.fixture(autouse=True)
def toy_family(monkeypatch):
    """One file and one line in `FAMILIES` add a family."""
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, Toy()))


def train(pipeline: ToyPipeline, reward: LinearReward, **settings):
    """f as a map of noise, trained with an objective of 1/2 ||f||^2 - reward by default."""
    d = torch.Size(pipeline.shape).numel()
    options = {
        "reg_weight": d / 2,  # of the mean of f^2 over the elements
        "batch_size": 256,
        "steps": 400,
        "optim": "adam",
        "lr": 2e-2,
        "schedule": "cosine",
        "grad_clip": 100.0,
        "lora_rank": 8,
        "precision": "float32",
        **settings,
    }
    config = TrainingConfig(**options)
    prompts = ["a prompt"] * (config.batch_size * config.accumulation_steps)
    ensemble = Ensemble({"linear": (reward, 1.0)})
    trainer = Trainer(
        pipeline, ensemble, prompts, NoFeatures(), config, size=(SIDE, SIDE), base_model="toy"
    )
    f = trainer.run().requires_grad_(False)
    return lambda noise: f(pipeline.network, noise, {})


@pytest.mark.parametrize(
    "settings",
    [{}, {"batch_size": 64, "accumulation_steps": 4}, {"reg_weight": 16.0, "steps": 300}],
)
def test_a_linear_reward_of_a_linear_generator_gives_its_shift_and_kl(settings):
    """The optimum is the shift W^T a with the KL 1/2 ||W^T a||^2, over the penalty's weight."""
    shape, d = (4, 2, 2), 16
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(torch.Size(PIXELS).numel(), d, generator=generator)
    w *= 0.06 / w.norm(dim=1, keepdim=True)  # so that images stay within [0, 1]
    a = torch.randn(len(w), generator=generator)
    a *= 2 / (w.T @ a).norm()
    pipeline = ToyPipeline(shape, lambda x: (0.5 + x.flatten(1) @ w.T).view(-1, *PIXELS))

    f = train(pipeline, LinearReward(a.view(PIXELS)), **settings)

    shift = w.T @ a * (d / 2) / settings.get("reg_weight", d / 2)
    noise = torch.randn(500, *shape, generator=generator)
    deltas = f(noise).flatten(1)
    assert (deltas - shift).norm(dim=1).mean() < 0.02 * shift.norm()
    kl = exact_kl_terms(f, noise).kl.mean().item()
    assert kl == pytest.approx(0.5 * shift.square().sum().item(), rel=0.02)


X = np.linspace(-9, 9, 20_001)
NORMAL = np.exp(-(X**2) / 2) / np.sqrt(2 * np.pi)


@dataclass
class Tilt:
    """r(g(x)) = weight x sigmoid(slope x x) of one number x."""

    slope: float
    weight: float

    def brightness(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.slope * x).expand(-1, *PIXELS)

    @property
    def reward(self) -> LinearReward:
        return LinearReward(torch.full(PIXELS, self.weight / torch.Size(PIXELS).numel()))

    def tilted(self, x: np.ndarray) -> np.ndarray:
        """The density p0*."""

        def unnormalised(x: np.ndarray) -> np.ndarray:
            return np.exp(self.weight / (1 + np.exp(-self.slope * x)) - x**2 / 2)

        return unnormalised(x) / simpson(unnormalised(X), x=X)


def variation(f, density) -> float:
    """Total variation between x + f(x), for x ~ N(0, 1), and a density."""
    noise = torch.from_numpy(X).float().view(-1, 1, 1, 1)
    y = X + f(noise).flatten().double().numpy()
    slope = np.gradient(y, X)
    assert slope.min() > 0  # one-to-one, so that densities change by its slope
    return 0.5 * simpson(np.abs(NORMAL - density(y) * slope), x=X)


@pytest.fixture(scope="module")
def fresh_noise() -> Tensor:
    return torch.randn(2000, 1, 1, 1, generator=torch.Generator().manual_seed(1))


def test_a_gentle_reward_gives_the_tilted_noise(fresh_noise):
    tilt = Tilt(slope=0.6, weight=4.0)
    f = train(ToyPipeline((1, 1, 1), tilt.brightness), tilt.reward)
    assert variation(torch.zeros_like, tilt.tilted) > 0.15
    assert variation(f, tilt.tilted) < 0.05
    assert exact_kl_terms(f, fresh_noise).remainder_share < 0.05


def test_a_steep_reward_does_not_and_the_remainder_tells(fresh_noise):
    """What is minimised there is not the KL: f crowds the noise where the reward rises."""
    tilt = Tilt(slope=2.0, weight=1.5)
    f = train(ToyPipeline((1, 1, 1), tilt.brightness), tilt.reward)
    assert variation(torch.zeros_like, tilt.tilted) > 0.15
    assert variation(f, tilt.tilted) > 0.1
    assert exact_kl_terms(f, fresh_noise).remainder_share > 0.25
