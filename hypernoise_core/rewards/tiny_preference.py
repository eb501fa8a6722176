"""tiny-preference: the CLIP-style scorer of the tiny world that ships with the project."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .reward import Reward, check_batch

_DEFAULT_FOLDER = Path(__file__).resolve().parents[2] / "assets" / "tiny-preference"


class TinyPreference(Reward):
    """CLIP's logit, scale x cosine, of an image and a caption of the tiny world."""

    name = "tiny-preference"

    def __init__(self, model, tokenizer) -> None:
        """`model` a transformers CLIPModel on 64x64 images in [-1, 1], with its tokenizer."""
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self._text_features: dict[str, Tensor] = {}  # per prompt, on the CPU

    @classmethod
    def load(cls, folder: str | Path | None = None) -> "TinyPreference":
        try:
            from transformers import AutoTokenizer, CLIPModel
        except ImportError as error:
            raise ImportError(
                "the reward tiny-preference needs transformers: pip install transformers"
            ) from error
        path = Path(folder or _DEFAULT_FOLDER)
        if not (path / "model.safetensors").is_file():
            raise FileNotFoundError(f"no model.safetensors of tiny-preference in {path}")
        model = CLIPModel.from_pretrained(path, dtype=torch.float32, local_files_only=True)
        return cls(model, AutoTokenizer.from_pretrained(path, local_files_only=True))

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        check_batch(images, prompts)
        size = self.model.config.vision_config.image_size
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True)
        pooled = self.model.vision_model(pixel_values=images * 2 - 1).pooler_output
        image_features = F.normalize(self.model.visual_projection(pooled), dim=-1)
        text_features = self._encode_texts(prompts).to(images)
        return self.model.logit_scale.exp() * (image_features * text_features).sum(-1)

    @torch.no_grad()
    def _encode_texts(self, prompts: Sequence[str]) -> Tensor:
        """Unit text features (B, D), from the cache where a prompt was seen before."""
        if new := sorted({prompt for prompt in prompts if prompt not in self._text_features}):
            tokens = self.tokenizer(new, return_tensors="pt", padding=True, truncation=True)
            tokens = tokens.to(self.model.device)
            pooled = self.model.text_model(
                input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
            ).pooler_output
            features = F.normalize(self.model.text_projection(pooled), dim=-1).cpu()
            self._text_features.update(zip(new, features, strict=True))
        return torch.stack([self._text_features[prompt] for prompt in prompts])
