"""How far f moves the noise distribution p0 = N(0, I), and how much of that the L2 penalty misses.

The modulated noise x + f(x) has a distribution p0'. With the Jacobian J of f (arXiv 2508.09968),

    KL(p0' || p0) = E[ 1/2 ||f||^2 + tr J - log|det(I + J)| ]

if x -> x + f(x) is one-to-one, for which a Lipschitz constant of f below 1 is sufficient. Where
several x map to the same point, the KL is larger. Training penalises only the first term. The
functions here estimate the others from products with J and its transpose, which works for networks
of any size.

Letters: B images, d elements per image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

NoiseMap = Callable[[Tensor], Tensor]
"""(B, C, H, W) -> the same shape; differentiable, with no interaction between images."""

ROUNDING = 1e-6
"""A vector of which only this share remains after a subtraction counts as 0 in float32."""


@dataclass(frozen=True)
class KlEstimate:
    """The terms whose mean is KL(p0' || p0): one value per noise, (B,) float64 on the CPU."""

    l2: Tensor
    """1/2 ||f||^2, which approximates the KL in training."""
    trace: Tensor
    """tr J."""
    log_det: Tensor
    """log|det(I + J)|."""

    @property
    def kl(self) -> Tensor:
        return self.l2 + self.remainder

    @property
    def remainder(self) -> Tensor:
        """The part of `kl` that the L2 term misses, (B,)."""
        return self.trace - self.log_det

    @property
    def remainder_share(self) -> float:
        """Mean remainder / mean KL: near 0 if the L2 term approximates the KL; nan for f = 0."""
        return float(self.remainder.mean() / self.kl.mean())


def kl_terms(
    f: NoiseMap,
    noise: Tensor,
    *,
    probes: int = 1,
    steps: int = 16,
    generator: torch.Generator | None = None,
) -> KlEstimate:
    """Estimate the terms of the KL with Hutchinson's estimator and stochastic Lanczos quadrature.

    With A = I + J, log|det A| is half the trace of log(A^T A), however large J is, and Lanczos
    steps from a probe v give v^T log(A^T A) v. The trace uses the same probes: the errors of the
    two are equal to first order in J, so their difference is far more accurate than either.

    Args:
        f: such as `lambda x: hypernetwork(network, x, conditioning)`.
        noise: x ~ N(0, I), (B, C, H, W).
        probes: vectors of random signs per image; the error falls with the root of B x probes.
        steps: Lanczos steps per probe, at most d; each takes a forward-mode and a backward pass.
            With too few, log_det is too high, by an error that falls with
            ((k - 1) / (k + 1))^(2 steps) for a condition number k of A.
        generator: a CPU generator for the probes.

    Raises:
        ValueError: probes or steps is below 1.
    """
    _check_counts(probes=probes, steps=steps)
    jacobian = _Jacobian(f, noise)
    estimates = []
    for _ in range(probes):
        probe = _random_signs(jacobian.x, generator)
        trace = (probe * jacobian.times(probe)).sum(1)
        estimates.append((trace.double().cpu(), _log_det_along(probe, jacobian, steps)))
    trace, log_det = (torch.stack(values).mean(0) for values in zip(*estimates, strict=True))
    return KlEstimate(jacobian.l2, trace, log_det)


def exact_kl_terms(f: NoiseMap, noise: Tensor) -> KlEstimate:
    """Compute the terms of the KL from full Jacobians: d backward passes and B matrices d x d.

    Args:
        noise: x ~ N(0, I), (B, C, H, W), with d up to a few thousand.
    """
    jacobian = _Jacobian(f, noise)
    matrix = jacobian.matrix().double().cpu()
    trace = matrix.diagonal(dim1=1, dim2=2).sum(1)
    log_det = torch.linalg.slogdet(torch.eye(matrix.shape[1]) + matrix).logabsdet
    return KlEstimate(jacobian.l2, trace, log_det)


def lipschitz_estimate(
    f: NoiseMap, noise: Tensor, *, iterations: int = 12, generator: torch.Generator | None = None
) -> Tensor:
    """Estimate the largest singular value of J at each noise, (B,) float64 on the CPU.

    It is a lower bound of the Lipschitz constant of f. The estimate approaches it from below, by
    Lanczos iterations on J^T J, which need far fewer products than power iterations.

    Args:
        noise: (B, C, H, W).
        iterations: Lanczos iterations, at most d; each takes a forward-mode and a backward pass.
        generator: a CPU generator for the starting vectors.

    Raises:
        ValueError: iterations is below 1.
    """
    _check_counts(iterations=iterations)
    jacobian = _Jacobian(f, noise)
    start = _random_signs(jacobian.x, generator)
    bidiagonal = _bidiagonalise(jacobian.times, jacobian.transposed_times, start, iterations)
    return torch.linalg.matrix_norm(bidiagonal, 2)


def kl_bound_gap(lipschitz: Tensor, d: int) -> Tensor:
    """d (-log(1 - L) - L), the paper's bound on |KL - 1/2 E||f||^2|; infinite for L >= 1.

    Args:
        lipschitz: Lipschitz constants L of f, of any shape.
        d: number of elements in one noise.
    """
    gap = d * (-torch.log1p(-lipschitz) - lipschitz)
    return torch.where(lipschitz < 1, gap, torch.inf)


class _Jacobian:
    """The Jacobian J of f at each noise, as products with vectors (B, d)."""

    def __init__(self, f: NoiseMap, noise: Tensor) -> None:
        self.f = f
        self.x = noise.detach().clone().requires_grad_()
        with torch.enable_grad():
            self.y = f(self.x) + 0 * self.x  # so that a constant f has a derivative too

    @property
    def l2(self) -> Tensor:
        return 0.5 * self.y.detach().double().flatten(1).square().sum(1).cpu()

    def times(self, v: Tensor) -> Tensor:
        """J v. Fused attention kernels do not support forward mode, so they are turned off."""
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
            y = self.f(forward_ad.make_dual(self.x.detach(), v.view_as(self.x)))
            tangent = forward_ad.unpack_dual(y).tangent
        return torch.zeros_like(v) if tangent is None else tangent.flatten(1)

    def transposed_times(self, u: Tensor) -> Tensor:
        """J^T u, from the graph of a single forward pass."""
        (product,) = torch.autograd.grad(self.y, self.x, u.view_as(self.y), retain_graph=True)
        return product.flatten(1)

    def matrix(self) -> Tensor:
        """The full J, (B, d, d)."""
        rows = torch.eye(self.x[0].numel(), dtype=self.x.dtype, device=self.x.device)
        return torch.stack([self.transposed_times(row.repeat(len(self.x), 1)) for row in rows], 1)


def _log_det_along(probe: Tensor, jacobian: _Jacobian, steps: int) -> Tensor:
    """1/2 v^T log(A^T A) v for A = I + J and probes v (B, d), by Gauss quadrature: (B,)."""
    bidiagonal = _bidiagonalise(
        lambda v: v + jacobian.times(v), lambda u: u + jacobian.transposed_times(u), probe, steps
    )
    _, nodes, right = torch.linalg.svd(bidiagonal)
    weights = right[:, :, 0].square()
    logs = nodes.clamp(min=torch.finfo(nodes.dtype).tiny).log()  # unused steps: node 0, weight 0
    return probe.shape[1] * (weights * logs).sum(1)


def _bidiagonalise(
    times: Callable[[Tensor], Tensor],
    transposed_times: Callable[[Tensor], Tensor],
    start: Tensor,
    steps: int,
) -> Tensor:
    """Golub-Kahan bidiagonalisation of A from a start v (B, d): (B, steps, steps) float64.

    Its square B^T B is the Lanczos matrix of A^T A, without the accuracy lost by squaring A.
    """
    steps = min(steps, start.shape[1])
    result = torch.zeros(len(start), steps, steps, dtype=torch.float64)
    lefts: list[Tensor] = []
    rights = [_orthonormalise(start, [])[0]]
    for i in range(steps):
        left, result[:, i, i] = _orthonormalise(times(rights[-1]), lefts)
        lefts.append(left)
        if i + 1 < steps:
            right, result[:, i, i + 1] = _orthonormalise(transposed_times(left), rights)
            rights.append(right)
    return result


def _orthonormalise(vectors: Tensor, basis: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The part of `vectors` (B, d) that is orthogonal to `basis`, as unit vectors, and its length.

    Both are 0 for images where only rounding error is left.
    """
    rest = vectors
    for _ in range(2):  # one pass leaves rounding errors relative to what was subtracted
        for known in basis:
            rest = rest - (known * rest).sum(1, keepdim=True) * known
    length = rest.norm(dim=1, keepdim=True)
    length = torch.where(length > ROUNDING * vectors.norm(dim=1, keepdim=True), length, 0)
    unit = torch.where(length > 0, rest / length, 0)
    return unit, length.squeeze(1).double().cpu()


def _random_signs(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """(B, d) of -1 and 1."""
    shape = (len(like), like[0].numel())
    signs = 2 * torch.randint(2, shape, generator=generator) - 1
    return signs.to(device=like.device, dtype=like.dtype)


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
