"""The original packages hpsv2 and image-reward, for the other scripts in this folder.

Runs in the environment that `sh scripts/set_up.sh oracle .venv-oracle` creates, without our code.
"""

import json
import os
import sys
import tempfile
import types
from pathlib import Path
from typing import Any
from unittest import mock

# hpsv2 has an unused import from turtle, a module that a Python without Tk lacks.
sys.modules["turtle"] = types.ModuleType("turtle")
sys.modules["turtle"].forward = None

from hpsv2.src import open_clip  # noqa: E402
from ImageReward.ImageReward import MLP, ImageReward  # noqa: E402
from ImageReward.models.BLIP import blip_pretrain  # noqa: E402
from ImageReward.models.BLIP.vit import VisionTransformer  # noqa: E402

# The content of med_config.json, which is next to ImageReward.pt on the hub.
MED_CONFIG = {
    "add_cross_attention": True,
    "attention_probs_dropout_prob": 0.1,
    "encoder_width": 768,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 30524,
}


def published_hps() -> open_clip.CLIP:
    """The network that hpsv2 loads HPS_v2.1_compressed.pt into."""
    return open_clip.create_model("ViT-H-14", output_dict=True)


def published_image_reward() -> ImageReward:
    """The network that image-reward loads ImageReward.pt into."""
    with tempfile.TemporaryDirectory() as folder:
        med_config = Path(folder) / "med_config.json"
        med_config.write_text(json.dumps(MED_CONFIG))
        # The tokenizer is loaded by name; set_up.sh has created a folder of that name here.
        before = Path.cwd()
        os.chdir(sys.prefix)
        try:
            return ImageReward(med_config=str(med_config))
        finally:
            os.chdir(before)


def small_hps(config: dict[str, Any]) -> open_clip.CLIP:
    """HPS at another size, given by embed_dim, vision_cfg and text_cfg."""
    return open_clip.CLIP(**config, output_dict=True)


def small_image_reward(vision: dict[str, Any], text: dict[str, Any]) -> ImageReward:
    """ImageReward at another size; the package's constructor only builds the published one.

    Args:
        vision: arguments of the package's VisionTransformer.
        text: entries of med_config.json that differ.
    """
    size = mock.patch.object(
        blip_pretrain, "create_vit", lambda *_: (VisionTransformer(**vision), vision["embed_dim"])
    )
    with size, mock.patch.dict(MED_CONFIG, text):
        model = published_image_reward()
    model.mlp = MLP(text["hidden_size"])
    return model
