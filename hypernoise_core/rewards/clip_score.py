"""CLIPScore on OpenCLIP's ViT-H-14, trained on LAION-2B."""

from __future__ import annotations

from .clip import VIT_H_14, CosineReward, clip_files, load_clip
from .weights import WeightStore


class ClipScore(CosineReward):
    """CLIP's logit: 100 x cosine, around 30 where image and prompt agree."""

    name = "clip"
    title = "CLIPScore"
    loss_offset = 100.0
    files = clip_files(
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "1c2b8495b28150b8a4922ee1c8edee224c284c0c"
    )
    size = VIT_H_14

    @classmethod
    def load(cls, store: WeightStore) -> ClipScore:
        return cls(load_clip(store, cls.files))
