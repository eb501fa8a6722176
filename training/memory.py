"""Less memory in training: activations that are recomputed or not kept, and how much they take.

A frozen layer's backward pass needs less than what PyTorch keeps for it: only the gradient of its
input is asked for.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.normalization import RMSNorm as DiffusersRMSNorm
from diffusers.models.transformers.sana_transformer import GLUMBConv
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from transformers.activations import QuickGELUActivation

from ..hypernoise_core.execution import checkpoint_block
from ..hypernoise_core.families import family_of_pipeline

_DECODER_BLOCKS = {
    *("ResBlock", "EfficientViTBlock", "DCUpBlock2d"),  # of AutoencoderDC
    *("ResnetBlock2D", "Attention", "Upsample2D"),  # of AutoencoderKL
}


def checkpoint_activations(pipeline: Any) -> None:
    """From now on the pipeline's network and VAE decoder recompute activations in backward.

    The network's hypernetwork pass is recomputed with its LoRA branches. The decoder's blocks are
    small ones: at full image size a whole stage would need several times as much memory while it is
    recomputed.

    Args:
        pipeline: a diffusers pipeline of a known family.
    """
    family_of_pipeline(pipeline).network(pipeline).enable_gradient_checkpointing()
    for module in pipeline.vae.decoder.modules():
        if type(module).__name__ in _DECODER_BLOCKS:
            checkpoint_block(module)


def save_memory(*parts: Any) -> None:
    """From now on frozen layers keep less for the backward pass; same values, same gradients.

    - Convolutions and BatchNorm in evaluation mode do not keep their input.
    - RMSNorm and QuickGELU keep their input alone, and SiLU behind a GroupNorm keeps nothing of
      its own: they are computed again in the backward pass.
    - The gate of SANA's feed-forward is computed again from its input.

    Layers with a parameter that takes gradients, and calls without gradient, stay as they are.
    Calling it twice changes nothing. Wrap layers (FSDP, torch.compile) after this, not before.

    Args:
        parts: modules, or diffusers pipelines, whose modules are meant then.
    """
    for part in parts:
        modules = part.components.values() if hasattr(part, "components") else [part]
        for module in modules:
            if isinstance(module, nn.Module):
                for layer in module.modules():
                    # The class and not the module: hooks, parameters and whoever refers to the
                    # layer stay as they are.
                    layer.__class__ = _SAVING.get(type(layer), type(layer))


def _is_plain(layer: nn.Module, features: Tensor) -> bool:
    """Whether the layer does better to run as it always does."""
    trained = any(parameter.requires_grad for parameter in layer.parameters(recurse=False))
    return trained or not (features.requires_grad and torch.is_grad_enabled())


class _Convolution(torch.autograd.Function):
    """A convolution whose backward pass gets the shape of the input instead of the input."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, features: Tensor, weight: Tensor, bias: Tensor | None, options: tuple
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.options = features.shape, options
        return torch.ops.aten.convolution(features, weight, bias, *options)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        features = gradient.new_empty(1).expand(ctx.shape)  # takes no memory; is not read
        result, _, _ = torch.ops.aten.convolution_backward(
            gradient, features, weight, None, *ctx.options, (True, False, False)
        )
        return result, None, None, None


class _SavingConv2d(nn.Conv2d):
    def forward(self, features: Tensor) -> Tensor:
        zeros = self.padding_mode == "zeros" and self.padding != "same"
        if _is_plain(self, features) or not zeros or features.ndim != 4:
            return super().forward(features)
        padding = (0, 0) if self.padding == "valid" else self.padding
        options = (self.stride, padding, self.dilation, False, (0, 0), self.groups)
        return _Convolution.apply(features, self.weight, self.bias, options)


class _SavingConvTranspose2d(nn.ConvTranspose2d):
    def forward(self, features: Tensor, output_size: list[int] | None = None) -> Tensor:
        if _is_plain(self, features) or output_size is not None or features.ndim != 4:
            return super().forward(features, output_size)
        options = (self.stride, self.padding, self.dilation, True, self.output_padding, self.groups)
        return _Convolution.apply(features, self.weight, self.bias, options)


class _Recomputing:
    """In front of a layer class: keeps the layer's input and nothing else."""

    def forward(self, features: Tensor) -> Tensor:
        if _is_plain(self, features):
            return super().forward(features)
        options = {"use_reentrant": False, "preserve_rng_state": False}  # nothing is random
        return checkpoint(super().forward, features, **options)


class _SavingRMSNorm(_Recomputing, nn.RMSNorm):
    pass


class _SavingDiffusersRMSNorm(_Recomputing, DiffusersRMSNorm):
    pass


class _SavingQuickGELU(_Recomputing, QuickGELUActivation):
    pass


class _Scaled(torch.autograd.Function):
    """An affine map per channel, (B, C, ...), of which the backward pass needs the scale alone."""

    @staticmethod
    def forward(ctx: FunctionCtx, features: Tensor, layer: Any, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return layer(features)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (scale,) = ctx.saved_tensors
        scale = scale.view(-1, *[1] * (gradient.ndim - 2))
        return (gradient * scale).to(gradient.dtype), None, None


class _SavingBatchNorm2d(nn.BatchNorm2d):
    def forward(self, features: Tensor) -> Tensor:
        if _is_plain(self, features) or self.training or self.running_var is None:
            return super().forward(features)
        scale = torch.rsqrt(self.running_var.float() + self.eps)
        if self.weight is not None:
            scale = scale * self.weight.float()
        return _Scaled.apply(features, super().forward, scale)


class _SavingGroupNorm(nn.GroupNorm):
    def forward(self, features: Tensor) -> Tensor:
        output = super().forward(features)
        if not _is_plain(self, features):
            # On the tensor, which is all that a SiLU behind the norm gets to see. The norm's own
            # backward pass keeps the input in any case.
            output.recipe = (output._version, super().forward, features.detach())
        return output


class _RecomputedSiLU(torch.autograd.Function):
    """SiLU that computes its input again, as `layer(source)`."""

    @staticmethod
    def forward(ctx: FunctionCtx, features: Tensor, layer: Any, source: Tensor) -> Tensor:
        ctx.save_for_backward(source)
        ctx.layer = layer
        return F.silu(features)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (source,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient, ctx.layer(source)), None, None


class _SavingSiLU(nn.SiLU):
    def forward(self, features: Tensor) -> Tensor:
        recipe = getattr(features, "recipe", None)
        if recipe is None or self.inplace or not torch.is_grad_enabled():
            return super().forward(features)
        version, layer, source = recipe
        if features._version != version:  # somebody wrote into the norm's output
            return super().forward(features)
        return _RecomputedSiLU.apply(features, layer, source)


class _Gated(torch.autograd.Function):
    """a * SiLU(b), of which the backward pass computes the SiLU again."""

    @staticmethod
    def forward(ctx: FunctionCtx, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a * F.silu(b)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return gradient * F.silu(b), torch.ops.aten.silu_backward(gradient * a, b)


class _SavingGLU(GLUMBConv):
    def forward(self, features: Tensor) -> Tensor:
        if not (features.requires_grad and torch.is_grad_enabled()):
            return super().forward(features)
        hidden = self.conv_depth(self.nonlinearity(self.conv_inverted(features)))
        output = self.conv_point(_Gated.apply(*hidden.chunk(2, dim=1)))
        if self.norm is not None:
            output = self.norm(output.movedim(1, -1)).movedim(-1, 1)
        return output + features if self.residual_connection else output


_SAVING: dict[type, type] = {
    GLUMBConv: _SavingGLU,
    nn.Conv2d: _SavingConv2d,
    nn.ConvTranspose2d: _SavingConvTranspose2d,
    nn.BatchNorm2d: _SavingBatchNorm2d,
    nn.GroupNorm: _SavingGroupNorm,
    nn.RMSNorm: _SavingRMSNorm,
    DiffusersRMSNorm: _SavingDiffusersRMSNorm,
    QuickGELUActivation: _SavingQuickGELU,
    nn.SiLU: _SavingSiLU,
}


class LiveBytes(TorchDispatchMode):
    """A context that counts the bytes of the tensors made inside it that are still in use.

    A storage that several tensors share counts once. After a forward pass `now` is what autograd
    keeps for the backward pass, plus the results; `peak` is the most there was at a time. Works on
    the meta device, where nothing takes memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        """Bytes in use."""
        self.peak = 0
        """The most bytes in use so far."""
        self._storages: dict[int, weakref.ref] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        before = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(outputs):
            storage = tensor.untyped_storage()
            if storage._cdata not in before and storage._cdata not in self._storages:
                self._count(storage)
        return outputs

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()

        def freed(_: weakref.ref) -> None:
            del self._storages[key]
            self.now -= size

        self._storages[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
