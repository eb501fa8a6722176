"""LAION's aesthetic predictor: an MLP on the image features of CLIP ViT-L/14."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..tensor_file import load_strictly, read_tensors
from .clip import ClipEncoder, clip_files, load_clip
from .head import ScoreHead
from .images import ImageBatch
from .reward import NetworkSize, Reward
from .weights import WeightFile, WeightStore

_CLIP = clip_files("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41")
_HEAD = WeightFile(
    "camenduru/improved-aesthetic-predictor",
    "sac+logos+ava1-l14-linearMSE.pth",
    size=3_714_759,
    sha256="21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
)


class Aesthetic(Reward):
    """How people would rate the image from 1 to 10; the prompt plays no part."""

    name = "aesthetic"
    title = "LAION aesthetic"
    loss_offset = 10.0
    files = (*_CLIP, _HEAD)
    size = NetworkSize(parameters=303_966_209 + 927_969, activations=90_000_000)  # CLIP and head

    def __init__(self, encoder: ClipEncoder, head: ScoreHead) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head.eval().requires_grad_(False)

    @classmethod
    def load(cls, store: WeightStore) -> Aesthetic:
        head, path = ScoreHead(768), store.find(_HEAD)
        load_strictly(head, read_tensors(path)[0], path)
        return cls(load_clip(store, _CLIP), head)

    def score_batch(self, batch: ImageBatch, prompts: Sequence[str]) -> Tensor:
        return self.head(batch.features(self.encoder)).squeeze(-1)

    def blocks(self) -> Sequence[nn.Module]:
        return self.encoder.blocks()
