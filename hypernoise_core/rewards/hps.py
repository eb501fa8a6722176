"""HPSv2.1: OpenCLIP's ViT-H-14, tuned on which of two images people prefer (arXiv 2306.09341)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..tensor_file import load_strictly, read_tensors
from .clip import VIT_H_14, ClipTokenizer, CosineReward, OpenClip, open_clip
from .images import Preprocess
from .weights import WeightFile, WeightStore

_CHECKPOINT = WeightFile(
    "xswu/HPSv2",
    "HPS_v2.1_compressed.pt",
    size=1_972_490_005,
    sha256="c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837",
    revision="697403c78157020a1ae59d23f111aa58ced35b0a",
)


class Hps(CosineReward):
    """The cosine itself, around 0.28 for good images.

    Images are prepared as for CLIP. The package hpsv2 pads them to a square instead, so its numbers
    differ on images that are not square.
    """

    name = "hps"
    title = "HPSv2.1"
    loss_offset = 1.0
    files = (_CHECKPOINT,)
    size = VIT_H_14
    scaled = False

    @classmethod
    def load(cls, store: WeightStore) -> Hps:
        config = open_clip().get_model_config("ViT-H-14")
        return cls(load_open_clip(config, store.find(_CHECKPOINT), store.dtype))


def load_open_clip(
    config: Mapping[str, Any], weights: Path, dtype: torch.dtype = torch.float32
) -> OpenClip:
    """An OpenCLIP network with the weights of a file.

    Args:
        config: embed_dim, vision_cfg and text_cfg, as OpenCLIP keeps them for each model.

    Raises:
        TensorFileError: the file is damaged, or its weights are not those of the network.
    """
    model = open_clip().CLIP(**config)
    tensors: dict[str, Tensor] = read_tensors(weights)[0]
    load_strictly(model, tensors, weights)
    return OpenClip(model.to(dtype), ClipTokenizer(), Preprocess(model.visual.image_size[0]))
