"""tiny-preference: the CLIP-style scorer of the tiny world that ships with the project."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ..text import expect_long_texts
from .clip import CosineReward, TransformersClip, read_clip_model
from .images import Preprocess
from .reward import NetworkSize
from .weights import WeightStore

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "tiny-preference"


class TinyPreference(CosineReward):
    """CLIP's logit, scale x cosine, of an image and a caption of the tiny world."""

    name = "tiny-preference"
    title = "tiny-preference"
    embedded = True
    size = NetworkSize(parameters=379_841, activations=300_000)

    @classmethod
    def paths(cls, store: WeightStore) -> dict[str, Path]:
        return {path.name: path for path in FOLDER.iterdir() if path.is_file()}

    @classmethod
    def load(cls, store: WeightStore) -> TinyPreference:
        model = read_clip_model(FOLDER)
        size = model.config.vision_config.image_size
        preprocess = Preprocess(size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        return cls(TransformersClip(model, TinyTokenizer(), preprocess))


class TinyTokenizer:
    """The tokenizer of the tiny world's captions, in transformers' files."""

    def __init__(self) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)
        self.length = self._tokenizer.model_max_length
        expect_long_texts(self._tokenizer)

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """(B, L) token numbers, cut off at `length`."""
        return self._tokenizer(
            list(prompts), return_tensors="pt", padding=True, truncation=True
        ).input_ids

    def count(self, prompt: str) -> int:
        """Tokens of the whole text."""
        return len(self._tokenizer(prompt, truncation=False).input_ids)
