"""CLIP networks, in transformers and in OpenCLIP, as rewards use them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import LibraryFolderError, TensorFileError
from ..library_folder import building_from, check_part
from ..tensor_file import open_safetensors
from ..text import printable
from .images import ImageBatch, Preprocess
from .reward import NetworkSize, Reward
from .weights import WeightFile, WeightStore

VIT_H_14 = NetworkSize(parameters=632_076_801, activations=106_000_000)
"""The image encoder of CLIP ViT-H-14."""

_REMEMBERED_PROMPTS = 16384  # of some kilobytes each
_MOST_CHARACTERS = 4000  # of a prompt; 77 tokens end long before, and a word takes its square


class Tokenizer(Protocol):
    """Texts to tokens."""

    length: int
    """Tokens that the network reads of a text."""

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """(B, L) token numbers, cut off at `length`."""

    def count(self, prompt: str) -> int:
        """Tokens of the whole text; of a very long one, of a part that is longer than `length`."""


class ClipTokenizer:
    """The tokenizer of OpenAI's and OpenCLIP's CLIPs; its vocabulary is part of open_clip_torch."""

    length = 77

    def __init__(self) -> None:
        self._tokenizer = open_clip().tokenizer.SimpleTokenizer(context_length=self.length)

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        return self._tokenizer([_beginning(prompt) for prompt in prompts])

    def count(self, prompt: str) -> int:
        return len(self._tokenizer.encode(_beginning(prompt))) + 2  # start and end


def _beginning(prompt: str) -> str:
    return " ".join(prompt.split())[:_MOST_CHARACTERS]


class ClipEncoder(nn.Module, ABC):
    """A frozen CLIP: unit features of images and texts, in float32."""

    text_parts: ClassVar[tuple[str, ...]]
    """Parts of `model` that only texts need."""

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, preprocess: Preprocess) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self._text_features: OrderedDict[str, Tensor] = OrderedDict()  # on the CPU
        self._lookup: Callable[[Sequence[str]], Tensor] | None = None

    @property
    def scale(self) -> Tensor:
        """Factor on the cosine, a scalar."""
        return self.model.logit_scale.float().exp()

    @abstractmethod
    def encode_image(self, pixels: Tensor) -> Tensor:
        """(B, 3, size, size) -> (B, D)."""

    @abstractmethod
    def encode_text(self, tokens: Tensor) -> Tensor:
        """(B, L) -> (B, D)."""

    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks of the image encoder."""

    def image_features(self, pixels: Tensor) -> Tensor:
        """Preprocessed images (B, 3, size, size) -> unit vectors (B, D), differentiable."""
        dtype = self.model.logit_scale.dtype
        return F.normalize(self.encode_image(pixels.to(dtype)).float(), dim=-1)

    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors (B, D) on the network's device, remembered for each prompt.

        Raises:
            ValueError: texts are fixed, and the prompt is not among them.
        """
        if self._lookup is not None:
            return self._lookup(prompts).to(self.model.logit_scale.device)
        known = self._text_features
        new = list(dict.fromkeys(prompt for prompt in prompts if prompt not in known))
        # Nodes run in inference mode, whose tensors could not take part in a gradient later.
        with torch.inference_mode(False), torch.no_grad():
            if new:
                tokens = self.tokenizer(new).to(self.model.logit_scale.device)
                features = F.normalize(self.encode_text(tokens).float(), dim=-1)
                known.update(zip(new, features.cpu(), strict=True))
            for prompt in prompts:
                known.move_to_end(prompt)
            chosen = torch.stack([known[prompt] for prompt in prompts])
            while len(known) > _REMEMBERED_PROMPTS:
                known.popitem(last=False)
            return chosen.to(self.model.logit_scale.device)

    def text_tower(self) -> dict[str, Tensor]:
        """The weights of the text side by name: equal ones give equal text features.

        Raises:
            ValueError: `fix_texts` has dropped them.
        """
        if self._lookup is not None:
            raise ValueError("the texts of this CLIP are fixed: it has no text tower any more")
        weights = self.model.state_dict().items()
        return {name: w for name, w in weights if name.split(".")[0] in self.text_parts}

    def fix_texts(self, lookup: Callable[[Sequence[str]], Tensor]) -> None:
        """From now on look text features up, and drop the text tower and its memory.

        Args:
            lookup: unit vectors (B, D) of B prompts on any device, as `text_features` gave them;
                raises a ValueError for a prompt that it does not know.
        """
        self._lookup = lookup
        self._text_features.clear()
        for part in self.text_parts:  # not deleted: code of the libraries may look for them
            setattr(self.model, part, None)


class TransformersClip(ClipEncoder):
    """A CLIPModel of transformers."""

    text_parts = ("text_model", "text_projection")

    def encode_image(self, pixels: Tensor) -> Tensor:
        pooled = self.model.vision_model(pixel_values=pixels).pooler_output
        return self.model.visual_projection(pooled)

    def encode_text(self, tokens: Tensor) -> Tensor:
        # No attention mask: a text's features are those of its end, which sees no padding.
        pooled = self.model.text_model(input_ids=tokens).pooler_output
        return self.model.text_projection(pooled)

    def blocks(self) -> Sequence[nn.Module]:
        return self.model.vision_model.encoder.layers


class OpenClip(ClipEncoder):
    """A CLIP of OpenCLIP."""

    text_parts = (
        "transformer",
        "token_embedding",
        "positional_embedding",
        "ln_final",
        "text_projection",
        "attn_mask",
    )

    def encode_image(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels)

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.model.encode_text(tokens)

    def blocks(self) -> Sequence[nn.Module]:
        return self.model.visual.transformer.resblocks


class CosineReward(Reward):
    """The cosine of image and prompt in a CLIP, times the CLIP's scale or as it is."""

    scaled = True

    def __init__(self, encoder: ClipEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def score_batch(self, batch: ImageBatch, prompts: Sequence[str]) -> Tensor:
        image_features = batch.features(self.encoder)
        cosine = (image_features * self.encoder.text_features(prompts)).sum(-1)
        return self.encoder.scale * cosine if self.scaled else cosine

    def prompt_warnings(self, prompts: Sequence[str]) -> list[str]:
        return truncation_warnings(self.title, self.encoder.tokenizer, prompts)

    def blocks(self) -> Sequence[nn.Module]:
        return self.encoder.blocks()


def truncation_warnings(title: str, tokenizer: Tokenizer, prompts: Sequence[str]) -> list[str]:
    """One sentence for each prompt that the tokenizer truncates."""
    found = []
    for prompt in dict.fromkeys(prompts):
        if (count := tokenizer.count(prompt)) > tokenizer.length:
            found.append(
                f"{title} reads {tokenizer.length} tokens and ignores the end of the prompt "
                f"'{printable(prompt[:40])}...', which has "
                f"{'more than ' * (len(prompt) > _MOST_CHARACTERS)}{count}."
            )
    return found


def clip_files(repository: str, revision: str) -> tuple[WeightFile, ...]:
    """What transformers' CLIPModel needs of a repository at a commit."""
    names = ("config.json", "model.safetensors")
    return tuple(WeightFile(repository, name, revision=revision) for name in names)


def load_clip(store: WeightStore, files: tuple[WeightFile, ...]) -> ClipEncoder:
    """The CLIP whose files `clip_files` names; rewards that ask for the same one share it."""
    return store.once(files, lambda: _load_clip(store, files))


def _load_clip(store: WeightStore, files: tuple[WeightFile, ...]) -> ClipEncoder:
    config, weights = (store.find(file) for file in files)
    if config.parent != weights.parent:
        raise FileNotFoundError(f"{config} and {weights} must be in the same folder")
    model = read_clip_model(weights.parent, store.dtype)
    size = model.config.vision_config.image_size
    return TransformersClip(model, ClipTokenizer(), Preprocess(size))


def read_clip_model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' CLIPModel in a folder; all of its weights must be there and fit.

    Raises:
        TensorFileError: names the file and the weights.
        ImportError: transformers is missing.
    """
    try:
        from transformers import CLIPModel
    except ImportError as error:
        raise ImportError("this reward needs transformers: pip install transformers") from error
    path = folder / "model.safetensors"
    try:
        check_part(folder, CLIPModel)
    except LibraryFolderError as error:
        raise TensorFileError(str(error)) from error
    with open_safetensors(path):
        pass  # transformers' own message about a damaged file does not name it
    try:
        with building_from(folder):
            model, report = CLIPModel.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report, and refused below
            )
    except LibraryFolderError as error:
        raise TensorFileError(str(error)) from error
    except (ValueError, RuntimeError, OSError) as error:
        raise TensorFileError(
            f"{folder} contains no CLIP that transformers can load: {error}"
        ) from error
    problems = [f"{name} is missing" for name in sorted(report["missing_keys"])]
    problems += [
        f"{name} is {tuple(found)} instead of {tuple(expected)}"
        for name, found, expected in report["mismatched_keys"]
    ]
    if problems:
        raise TensorFileError(f"{path} does not fit a CLIPModel: {'; '.join(problems[:4])}")
    return model.to(dtype)  # older transformers name the argument for it differently


def open_clip() -> Any:
    """The package of that name.

    Raises:
        ImportError: names the command that installs it.
    """
    try:
        import open_clip
    except ImportError as error:
        raise ImportError("this reward needs open_clip: pip install open_clip_torch") from error
    return open_clip
