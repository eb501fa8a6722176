"""How far f moves the noise's distribution p0 = N(0, I), and what the L2 penalty misses of it.

The modulated noise x + f(x) has a distribution p0'. With the Jacobian J of f (arXiv 2508.09968),

    KL(p0' || p0) = E[ 1/2 ||f||^2 + tr J - log|det(I + J)| ]

where x -> x + f(x) is one-to-one, which a Lipschitz constant of f below 1 makes sure. Where several
x meet, the KL is larger. Training penalises the first term alone. The functions here estimate the
others from products with J and its transpose, so that a network of any size will do.

Letters: B images, d elements of one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

NoiseMap = Callable[[Tensor], Tensor]
"""(B, C, H, W) -> the same shape, differentiable, each image by itself."""

ROUNDING = 1e-6
"""A vector of which this share is left after a subtraction is 0 in float32."""


@dataclass(frozen=True)
class KlEstimate:
    """What KL(p0' || p0) is the mean of: a value for each noise, (B,) float64 on the CPU."""

    l2: Tensor
    """1/2 ||f||^2, the KL's stand-in in training."""
    trace: Tensor
    """tr J."""
    log_det: Tensor
    """log|det(I + J)|."""

    @property
    def kl(self) -> Tensor:
        return self.l2 + self.remainder

    @property
    def remainder(self) -> Tensor:
        """What the L2 term misses of `kl`, (B,)."""
        return self.trace - self.log_det

    @property
    def remainder_share(self) -> float:
        """Mean remainder / mean KL: near 0 where the L2 term stands for the KL; nan for f = 0."""
        return float(self.remainder.mean() / self.kl.mean())


def kl_terms(
    f: NoiseMap,
    noise: Tensor,
    *,
    probes: int = 1,
    steps: int = 16,
    generator: torch.Generator | None = None,
) -> KlEstimate:
    """The terms of the KL, by Hutchinson's estimator and stochastic Lanczos quadrature.

    With A = I + J, log|det A| is half the trace of log(A^T A), however large J is, and Lanczos
    steps from a probe v give v^T log(A^T A) v. The trace takes the same probes: the errors of the
    two are equal to first order in J, so that their difference is far more accurate than either.

    Args:
        f: such as `lambda x: hypernetwork(network, x, conditioning)`.
        noise: x ~ N(0, I), (B, C, H, W).
        probes: vectors of random signs for each image; the error falls with the root of B x probes.
        steps: Lanczos steps from a probe, each a forward-mode and a backward pass; no more than d
            are taken. Too few put log_det too high: by an error that falls with
            ((k - 1) / (k + 1))^(2 steps) for a condition number k of A.
        generator: a CPU generator for the probes.

    Raises:
        ValueError: there is no probe or no step.
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
    """The terms of the KL from whole Jacobians: d backward passes and B matrices d x d.

    Args:
        noise: x ~ N(0, I), (B, C, H, W) of few elements, d up to some thousands.
    """
    jacobian = _Jacobian(f, noise)
    matrix = jacobian.matrix().double().cpu()
    trace = matrix.diagonal(dim1=1, dim2=2).sum(1)
    log_det = torch.linalg.slogdet(torch.eye(matrix.shape[1]) + matrix).logabsdet
    return KlEstimate(jacobian.l2, trace, log_det)


def lipschitz_estimate(
    f: NoiseMap, noise: Tensor, *, iterations: int = 12, generator: torch.Generator | None = None
) -> Tensor:
    """The largest singular value of J at each noise, (B,) float64 on the CPU.

    A lower bound of the Lipschitz constant of f. It is found from below, by Lanczos iterations on
    J^T J, which need far fewer products than plain power iterations.

    Args:
        noise: (B, C, H, W).
        iterations: each a forward-mode and a backward pass; no more than d are taken.
        generator: a CPU generator for the starting vectors.

    Raises:
        ValueError: there is no iteration.
    """
    _check_counts(iterations=iterations)
    jacobian = _Jacobian(f, noise)
    start = _random_signs(jacobian.x, generator)
    bidiagonal = _bidiagonalise(jacobian.times, jacobian.transposed_times, start, iterations)
    return torch.linalg.matrix_norm(bidiagonal, 2)


def kl_bound_gap(lipschitz: Tensor, d: int) -> Tensor:
    """d (-log(1 - L) - L), the paper's bound of |KL - 1/2 E||f||^2|; infinite for L >= 1.

    Args:
        lipschitz: Lipschitz constants L of f, of any shape.
        d: number of elements of one noise.
    """
    gap = d * (-torch.log1p(-lipschitz) - lipschitz)
    return torch.where(lipschitz < 1, gap, torch.inf)


class _Jacobian:
    """J of f at each noise: its products with vectors (B, d)."""

    def __init__(self, f: NoiseMap, noise: Tensor) -> None:
        self.f = f
        self.x = noise.detach().clone().requires_grad_()
        with torch.enable_grad():
            self.y = f(self.x) + 0 * self.x  # a constant f has a derivative as well

    @property
    def l2(self) -> Tensor:
        return 0.5 * self.y.detach().double().flatten(1).square().sum(1).cpu()

    def times(self, v: Tensor) -> Tensor:
        """J v. The fused attention kernels have no forward mode, so attention runs without them."""
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
            y = self.f(forward_ad.make_dual(self.x.detach(), v.view_as(self.x)))
            tangent = forward_ad.unpack_dual(y).tangent
        return torch.zeros_like(v) if tangent is None else tangent.flatten(1)

    def transposed_times(self, u: Tensor) -> Tensor:
        """J^T u, from the graph of one forward pass, which is kept."""
        (product,) = torch.autograd.grad(self.y, self.x, u.view_as(self.y), retain_graph=True)
        return product.flatten(1)

    def matrix(self) -> Tensor:
        """J itself, (B, d, d)."""
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
    """Golub and Kahan's bidiagonal matrix of A from a start v (B, d): (B, steps, steps) float64.

    Its square B^T B is the Lanczos matrix of A^T A, without the loss of accuracy of squaring A.
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

    Both are 0 for images where nothing but rounding is left.
    """
    rest = vectors
    for _ in range(2):  # once leaves rounding errors of the size of what was taken away
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
