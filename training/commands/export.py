"""`hypernoise export`: an adapter as one small file for ComfyUI, with fewer bits or a lower rank.

A branch changes its layer's weight by W = B A alpha / r, a matrix of o outputs by i inputs (times
the kernel size). The error of a reduction is reported as ||W' - W|| / ||W||, in Frobenius norms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...hypernoise_core.adapter import find_weights, open_adapter, save_adapter
from ...hypernoise_core.generator_lora import GeneratorLora, save_generator_lora
from ...hypernoise_core.lora_adapter import LoraAdapter
from ...hypernoise_core.lora_branch import LoraBranch
from ...hypernoise_core.tensor_file import is_safetensors
from ..writable import check_file
from .settings import ExportConfig

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
SHOWN_LAYERS = 5

Adapter = TypeVar("Adapter", bound=LoraAdapter)


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """The result of an export, and its error."""

    source: Path
    target: Path
    dtype: str
    ranks: tuple[int, int]
    """Rank of most layers, before and after."""
    sizes: tuple[int, int]
    """Size of the weights file in bytes, before and after."""
    error: float
    """Relative error of all weight changes together, from rank and dtype."""
    layer_errors: dict[str, float]
    """The same for each layer."""

    def lines(self) -> list[str]:
        """The summary to print."""
        before, after = (f"{size / 1e6:.4g} MB" for size in self.sizes)
        worst = sorted(self.layer_errors, key=self.layer_errors.__getitem__, reverse=True)
        return [
            f"{self.source}: {before}, rank {self.ranks[0]}",
            f"{self.target}: {after}, rank {self.ranks[1]}, {self.dtype}",
            f"relative error of the weights: {self.error:.3g}; layers with the largest error:",
            *(f"  {self.layer_errors[name]:.3g}  {name}" for name in worst[:SHOWN_LAYERS]),
        ]


def run(config: ExportConfig) -> None:
    """Exports an adapter, and prints a summary and the path of the file."""
    check_file(config.out, "OUT", replace=config.force)
    report = export_adapter(
        config.adapter, config.out, dtype=config.dtype, rank=config.rank, alpha=config.alpha
    )
    print("\n".join(report.lines()))
    print(config.out.resolve())


def export_adapter(
    source: Path,
    target: Path,
    *,
    dtype: str = "float16",
    rank: int | None = None,
    alpha: float | None = None,
) -> ExportReport:
    """Write an adapter as one .safetensors file for ComfyUI.

    Args:
        source: a noise hypernetwork in any format that `load_adapter` reads; or a LoRA on the
            generator, which is written with the keys that ComfyUI's Load LoRA node expects.
        target: the file to write.
        dtype: dtype of the weights: float16, bfloat16 or float32.
        rank: branches of a higher rank are reduced to this one; None: no reduction.
        alpha: LoRA alpha of a source that does not store it; the target stores it.

    Raises:
        AdapterError: the source cannot be read, or its LoRA alpha is unknown.
        ValueError: the target, dtype or rank is invalid, or a weight is too large for the dtype.
    """
    source, target = Path(source), Path(target)
    weights = find_weights(source)
    _check_target(weights, target)
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}, choose from {', '.join(DTYPES)}")
    adapter = open_adapter(source, alpha=alpha)
    exported = cast(adapter if rank is None else reduce_rank(adapter, rank), DTYPES[dtype])
    squares = {
        name: _squares(branch, exported.branches[name]) for name, branch in adapter.branches.items()
    }
    if isinstance(exported, GeneratorLora):
        save_generator_lora(exported, target, dtype=DTYPES[dtype], for_comfyui=True)
    else:
        save_adapter(exported, target)
    return ExportReport(
        source=source,
        target=target,
        dtype=dtype,
        ranks=(adapter.metadata.rank, exported.metadata.rank),
        sizes=(weights.stat().st_size, target.stat().st_size),
        error=_relative(squares.values()),
        layer_errors={name: _relative([pair]) for name, pair in squares.items()},
    )


def _check_target(weights: Path, target: Path) -> None:
    if not is_safetensors(target):
        raise ValueError(f"{target}: the output file must end in .safetensors")
    if target.exists() and target.samefile(weights):
        raise ValueError(f"{target} is the adapter itself: choose another output file")


def reduce_rank(adapter: Adapter, rank: int) -> Adapter:
    """The adapter with each branch of a higher rank replaced by its best approximation of that
    rank.

    Best in the Frobenius norm of W: the truncated singular value decomposition, with the singular
    values split evenly between the factors. Scales and branches of a lower rank are unchanged.

    Raises:
        ValueError: the rank is below 1 or above the adapter's.
    """
    metadata = adapter.metadata
    if not 1 <= rank <= metadata.rank:
        raise ValueError(f"rank must be from 1 to {metadata.rank}, the adapter's rank, not {rank}")
    branches = {name: _reduced(branch, rank) for name, branch in adapter.branches.items()}
    alpha = metadata.alpha / metadata.rank * rank
    return type(adapter)(branches, replace(metadata, rank=rank, alpha=alpha))


def _reduced(branch: LoraBranch, rank: int) -> LoraBranch:
    if branch.rank <= rank:
        return branch
    up, down = _factors(branch)
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.T)
    # B A = q_up (r_up r_down^T) q_down^T, and the product in brackets is at most r x r.
    u, s, vh = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    root = s[:rank].sqrt()
    up, down = q_up @ u[:, :rank] * root, (q_down @ vh[:rank].T * root).T
    missing = rank - len(root)  # if the layer itself is smaller than the rank
    up, down = F.pad(up, (0, missing)), F.pad(down, (0, 0, 0, missing))
    return LoraBranch(
        down.reshape(rank, *branch.down.shape[1:]).float(),
        up.reshape(-1, rank, *branch.up.shape[2:]).float(),
        branch.scale * rank,
    )


def cast(adapter: Adapter, dtype: torch.dtype) -> Adapter:
    """The adapter with its weights in another dtype.

    Raises:
        ValueError: names a layer with a weight that is too large for the dtype.
    """
    branches = {
        name: LoraBranch(
            _cast(branch.down, dtype, name), _cast(branch.up, dtype, name), branch.alpha
        )
        for name, branch in adapter.branches.items()
    }
    return type(adapter)(branches, adapter.metadata)


def _cast(weight: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    weight = weight.detach().to(dtype)
    if not torch.isfinite(weight).all():
        raise ValueError(
            f"layer {name} has weights above {torch.finfo(dtype).max:.0f}, too large for {dtype}: "
            f"choose dtype bfloat16"
        )
    return weight


def weight_error(a: Mapping[str, LoraBranch], b: Mapping[str, LoraBranch]) -> float:
    """||W_b - W_a|| / ||W_a|| over all layers of `a`, which `b` must have; 0 if both are 0."""
    return _relative(_squares(branch, b[name]) for name, branch in a.items())


def _squares(a: LoraBranch, b: LoraBranch) -> tuple[float, float]:
    """||W_b - W_a||^2 and ||W_a||^2, without building the matrices W."""
    (up_a, down_a), (up_b, down_b) = _factors(a), _factors(b)
    up_a, up_b = up_a * a.scale, up_b * b.scale
    difference = _norm(torch.cat([up_b, -up_a], 1), torch.cat([down_b, down_a]))
    return difference**2, _norm(up_a, down_a) ** 2


def _norm(up: Tensor, down: Tensor) -> float:
    """||up down||; the norm does not change with an orthogonal factor on either side."""
    r_up, r_down = (torch.linalg.qr(factor, mode="r").R for factor in (up, down.T))
    return float(torch.linalg.matrix_norm(r_up @ r_down.T))


def _relative(squares: Iterable[tuple[float, float]]) -> float:
    difference, whole = (math.fsum(column) for column in zip(*squares, strict=True))
    if difference == 0:
        return 0.0
    return math.sqrt(difference / whole) if whole else math.inf


def _factors(branch: LoraBranch) -> tuple[Tensor, Tensor]:
    """B (o, r) and A (r, i x kh x kw) in float64; a grouped B is expanded to the dense matrix."""
    up, down = (factor.detach().double().flatten(1) for factor in (branch.up, branch.down))
    groups = branch.rank // up.shape[1]
    return torch.block_diag(*up.chunk(groups)), down
