"""Small networks of the rewards' kinds with random weights, in the files that people download."""

import hashlib
from pathlib import Path

import open_clip
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BlipTextConfig, BlipVisionConfig, CLIPConfig, CLIPModel
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from hypernoise.hypernoise_core.rewards.head import ScoreHead
from hypernoise.hypernoise_core.rewards.weights import WeightFile

OPEN_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16
    },
    "text_cfg": {
        "context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2
    },
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 32, "patch_size": 16, "layer_norm_eps": 1e-6,
}  # fmt: skip
TEXT = {
    "vocab_size": 64, "hidden_size": 32, "encoder_hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64,
    "layer_norm_eps": 1e-12,
}  # fmt: skip
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "circle", "two", "blue", "##s", "square"]


def clip_model(dimension: int = 24) -> CLIPModel:
    """transformers' CLIP with features (B, dimension)."""
    part = {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**part, "hidden_size": 16, "eos_token_id": 49407},
        vision_config={**part, "hidden_size": 32, "image_size": 32, "patch_size": 16},
        projection_dim=dimension,
    )
    return lively(CLIPModel(config))


def lively(module: torch.nn.Module) -> torch.nn.Module:
    """Weights large enough that image and text make a difference."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    return module.eval()


def write_tokenizer(path: Path) -> Path:
    """A tokenizer.json of BERT's kind with eleven words."""
    tokenizer = Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return path


def image_reward_tensors(vision: dict, text: dict) -> dict[str, torch.Tensor]:
    """A state dict with the names of ImageReward.pt: those of its own copy of BLIP."""
    networks = {
        "blip.visual_encoder.": lively(BlipVisionModel(BlipVisionConfig(**vision))),
        "blip.text_encoder.": lively(
            BlipTextModel(BlipTextConfig(**text), add_pooling_layer=False)
        ),
        "mlp.": ScoreHead(text["hidden_size"]),
    }
    names = {
        "embeddings.patch_embedding": "patch_embed.proj",
        "embeddings.class_embedding": "cls_token",
        "visual_encoder.embeddings.position_embedding": "visual_encoder.pos_embed",
        "visual_encoder.encoder.layers.": "visual_encoder.blocks.",
        "visual_encoder.post_layernorm": "visual_encoder.norm",
        "layer_norm1": "norm1",
        "layer_norm2": "norm2",
        "self_attn.projection": "attn.proj",
        "self_attn.qkv": "attn.qkv",
    }
    tensors = {}
    for prefix, network in networks.items():
        for name, tensor in network.state_dict().items():
            name = prefix + name
            for ours, theirs in names.items():
                name = name.replace(ours, theirs)
            tensors[name] = tensor.contiguous()
    return tensors


def write_clip(folder: Path, model: CLIPModel | None = None) -> None:
    (model or clip_model()).save_pretrained(folder)


def write_hps(path: Path) -> None:
    """As HPS_v2.1_compressed.pt holds its weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": lively(open_clip.CLIP(**OPEN_CLIP)).state_dict()}, path)


def into_cache(cache: Path, file: WeightFile, content: bytes) -> Path:
    """Lay a file into a Hugging Face cache, as a download does; returns the blob."""
    repository = cache / f"models--{file.repository.replace('/', '--')}"
    blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
    commit = "c0ffee" * 6 + "c0de"
    snapshot, main = repository / "snapshots" / commit / file.name, repository / "refs" / "main"
    for path in (blob, snapshot, main):
        path.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    snapshot.symlink_to(blob)
    main.write_text(commit)
    return blob
