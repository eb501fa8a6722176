"""PickScore: CLIP ViT-H-14 tuned on the choices of Pick-a-Pic's users (arXiv 2305.01569)."""

from __future__ import annotations

from .clip import VIT_H_14, CosineReward, clip_files, load_clip
from .weights import WeightStore


class PickScore(CosineReward):
    """PickScore's logit, around 20 to 23."""

    name = "pickscore"
    title = "PickScore"
    loss_offset = 30.0
    files = clip_files("yuvalkirstain/PickScore_v1", "a4e4367c6dfa7288a00c550414478f865b875800")
    size = VIT_H_14

    @classmethod
    def load(cls, store: WeightStore) -> PickScore:
        return cls(load_clip(store, cls.files))
