"""ImageReward: BLIP's image and text encoders with a head that scores the pair (arXiv 2304.05977).

The package image-reward has its own copy of BLIP; transformers' is the same under other names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..tensor_file import load_strictly, read_tensors
from .clip import truncation_warnings
from .head import ScoreHead
from .images import ImageBatch, Preprocess
from .reward import NetworkSize, Reward
from .weights import WeightFile, WeightStore

_CHECKPOINT = WeightFile(
    "THUDM/ImageReward", "ImageReward.pt", revision="5736be03b2652728fb87788c9797b0570450ab72"
)
_VOCABULARY = WeightFile(
    "google-bert/bert-base-uncased",
    "tokenizer.json",
    revision="86b5e0934494bd15c9632b12f734a8a67f723594",
)

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the raw scores on ImageReward's own data."""

VISION = {  # ViT-L/16
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 16,
    "layer_norm_eps": 1e-6,
}
TEXT = {  # BERT base that looks at the image in every layer, with BLIP's two tokens of its own
    "vocab_size": 30524,
    "hidden_size": 768,
    "encoder_hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12,
}
_VISION_PREFIX, _TEXT_PREFIX, _HEAD_PREFIX = "blip.visual_encoder.", "blip.text_encoder.", "mlp."
_VISION_NAMES = {  # in ImageReward's file -> in transformers, one after the other
    "patch_embed.proj": "embeddings.patch_embedding",
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "blocks.": "encoder.layers.",
    ".norm": ".layer_norm",
    "attn.": "self_attn.",
    "self_attn.proj.": "self_attn.projection.",
}


class ImageReward(Reward):
    """Human preference and agreement with the prompt; 0 is an average image, the spread is 1."""

    name = "imagereward"
    title = "ImageReward"
    loss_offset = 2.0
    files = (_CHECKPOINT, _VOCABULARY)
    size = NetworkSize(parameters=446_206_689, activations=67_000_000)

    def __init__(
        self, vision: nn.Module, text: nn.Module, head: ScoreHead, tokenizer: BertTokenizer
    ) -> None:
        """`vision` and `text` are transformers' BlipVisionModel and BlipTextModel."""
        super().__init__()
        self.vision, self.text, self.head = vision, text, head
        self.tokenizer = tokenizer
        self.preprocess = Preprocess(vision.config.image_size)
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, store: WeightStore) -> ImageReward:
        tokenizer = BertTokenizer(store.find(_VOCABULARY))
        return load_image_reward(VISION, TEXT, store.find(_CHECKPOINT), tokenizer, store.dtype)

    def score_batch(self, batch: ImageBatch, prompts: Sequence[str]) -> Tensor:
        tokens, mask = (t.to(batch.images.device) for t in self.tokenizer(prompts))
        pixels = batch.pixels(self.preprocess).to(self.vision.dtype)
        patches = self.vision(pixel_values=pixels).last_hidden_state
        joint = self.text(
            input_ids=tokens,
            attention_mask=mask,
            encoder_hidden_states=patches,
            encoder_attention_mask=torch.ones_like(patches[..., 0], dtype=torch.long),
        ).last_hidden_state
        return (self.head(joint[:, 0].float()).squeeze(-1) - MEAN) / STD

    def prompt_warnings(self, prompts: Sequence[str]) -> list[str]:
        return truncation_warnings(self.title, self.tokenizer, prompts)

    def blocks(self) -> Sequence[nn.Module]:
        return [*self.vision.encoder.layers, *self.text.encoder.layer]


class BertTokenizer:
    """BERT's tokenizer for lower-case English, with every text padded to 35 tokens."""

    length = 35

    def __init__(self, file: Path) -> None:
        """`file` is the tokenizer.json of bert-base-uncased.

        Raises:
            ValueError: it cannot be read.
        """
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing more special
            raise ValueError(f"{file} is damaged or not a tokenizer.json: {error}") from error
        self._tokenizer.add_special_tokens(["[DEC]", "[ENC]"])  # BLIP's own two
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token numbers and attention mask, (B, 35) each."""
        tokens = torch.zeros(len(prompts), self.length, dtype=torch.long)  # 0 is BERT's padding
        mask = torch.zeros_like(tokens)
        for row, encoding in enumerate(self._tokenizer.encode_batch(list(prompts))):
            ids = encoding.ids
            if len(ids) > self.length:
                ids = [*ids[: self.length - 1], ids[-1]]  # the end keeps its token
            tokens[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = 1
        return tokens, mask

    def count(self, prompt: str) -> int:
        """Tokens of the whole text."""
        return len(self._tokenizer.encode(prompt).ids)


def load_image_reward(
    vision_config: Mapping[str, Any],
    text_config: Mapping[str, Any],
    weights: Path,
    tokenizer: BertTokenizer,
    dtype: torch.dtype = torch.float32,
) -> ImageReward:
    """ImageReward with the weights of a file that has ImageReward.pt's names.

    Args:
        vision_config, text_config: of transformers' BLIP.

    Raises:
        TensorFileError: the file is damaged, or its weights are not those of the network.
        ImportError: transformers is missing.
    """
    try:
        from transformers import BlipTextConfig, BlipVisionConfig
        from transformers.models.blip.modeling_blip import BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel
    except ImportError as error:
        raise ImportError("ImageReward needs transformers: pip install transformers") from error
    tensors, _ = read_tensors(weights)
    vision = BlipVisionModel(BlipVisionConfig(**vision_config))
    text = BlipTextModel(BlipTextConfig(**text_config), add_pooling_layer=False)
    head = ScoreHead(text_config["hidden_size"])
    load_strictly(vision, _vision_tensors(tensors), weights)
    load_strictly(text, _without_prefix(tensors, _TEXT_PREFIX), weights)
    load_strictly(head, _without_prefix(tensors, _HEAD_PREFIX), weights)
    return ImageReward(vision.to(dtype), text.to(dtype), head, tokenizer)


def _vision_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in _without_prefix(tensors, _VISION_PREFIX).items():
        for theirs, ours in _VISION_NAMES.items():
            name = name.replace(theirs, ours)
        renamed[name.replace("norm.", "post_layernorm.") if name[:5] == "norm." else name] = tensor
    return renamed


def _without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix; position_ids are a counter that old versions kept."""
    return {
        name[len(prefix) :]: tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix) and not name.endswith("position_ids")
    }
