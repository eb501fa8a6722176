"""SANA's Gemma2 text encoder as a ComfyUI CLIP that the stock CLIP Text Encode node accepts.

The pipeline's own `encode_prompt` does the work: lower case, the instruction before the prompt,
300 tokens. Prompts are plain sentences for a language model, so "(red:1.2)" is read as written.
"""

import inspect
from pathlib import Path
from typing import Any

import comfy.hooks
import comfy.model_management as management
import comfy.sd
import torch

from ...hypernoise_core.library_folder import building_from
from ...hypernoise_core.text import check_prompts
from ..comfy_model import WholeModelPatcher
from .diffusers_library import diffusers, from_folder

TOKENS = "sana_sprint"


def load(
    folder: Path, dtype: torch.dtype | None, instruction: bool, variant: str | None = None
) -> comfy.sd.CLIP:
    """The CLIP of a SANA-Sprint folder; dtype None picks one for the device.

    Args:
        instruction: put the pipeline's instruction to the language model before each prompt.
        variant: of the weights; None: those without one.
    """
    device = management.text_encoder_device()
    if dtype is None:
        # float16, ComfyUI's default for text encoders, overflows in Gemma2
        dtype = torch.bfloat16 if management.should_use_bf16(device) else torch.float32
    with building_from(folder / "text_encoder"):
        pipeline = diffusers().SanaSprintPipeline.from_pretrained(
            folder,
            transformer=None,
            vae=None,
            scheduler=None,
            **from_folder(dtype, variant),
        )
    encoder = SanaTextEncoder(pipeline, instruction)
    # CLIP.__init__ builds one of ComfyUI's own encoders; what else it sets is set here.
    clip = SanaCLIP(no_init=True)
    clip.tokenizer = SanaTokenizer()
    clip.patcher = WholeModelPatcher(
        encoder, device, management.text_encoder_offload_device()
    ).with_factory(lambda: load(folder, dtype, instruction, variant).patcher)
    clip.patcher.hook_mode = comfy.hooks.EnumHookMode.MinVram
    clip.patcher.is_clip = True
    clip.layer_idx = None
    clip.tokenizer_options = {}
    clip.use_clip_schedule = False
    clip.apply_hooks_to_conds = None
    return clip


class SanaCLIP(comfy.sd.CLIP):
    """Encodes with the network of its patcher, which Select CLIP Device replaces with a copy."""

    @property
    def cond_stage_model(self) -> "SanaTextEncoder":
        return self.patcher.model

    def clone(self, *args: Any, **options: Any) -> "SanaCLIP":
        """A clone of this class; the arguments are those of ComfyUI's CLIP."""
        clone = SanaCLIP(no_init=True)
        vars(clone).update(vars(super().clone(*args, **options)))
        del vars(clone)["cond_stage_model"]  # a property of this class
        return clone


class SanaTokenizer:
    """Passes the text through: tokens depend on the instruction, which the encoder adds."""

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, **options: Any
    ) -> dict[str, list[list[tuple]]]:
        """One batch entry with one "token", the text, in ComfyUI's (token, weight) form."""
        return {TOKENS: [[(text, 1.0, 0) if return_word_ids else (text, 1.0)]]}

    def state_dict(self) -> dict:
        """Nothing to save with a checkpoint."""
        return {}


class SanaTextEncoder(torch.nn.Module):
    """Gemma2 with the interface that comfy.sd.CLIP calls."""

    def __init__(self, pipeline: Any, instruction: bool) -> None:
        super().__init__()
        self.text_encoder = pipeline.text_encoder.requires_grad_(False).eval()
        self.pipeline = pipeline
        # The pipeline's __call__ has the instruction as a default; encode_prompt alone has none.
        defaults = inspect.signature(type(pipeline).__call__).parameters
        self.settings = {"max_sequence_length": defaults["max_sequence_length"].default}
        if instruction:
            name = "complex_human_instruction"
            self.settings[name] = defaults[name].default

    def reset_clip_options(self) -> None:
        """Nothing is kept between calls."""

    def set_clip_options(self, options: dict) -> None:
        """CLIP skip and the like have no meaning here; the device is where the weights are."""

    def encode_token_weights(
        self, tokens: dict[str, list[list[tuple]]]
    ) -> tuple[torch.Tensor, None, dict[str, torch.Tensor]]:
        """Texts from SanaTokenizer -> embeddings (B, L, D), no pooled output, mask (B, L).

        Tokens that are padding in every text are left out: the network gives them no weight.
        """
        prompts = [" ".join(str(token[0]) for token in entry) for entry in tokens[TOKENS]]
        check_prompts(prompts)
        embeddings, mask = self.pipeline.encode_prompt(
            prompts, device=self.text_encoder.device, **self.settings
        )
        used = mask.any(dim=0)
        device = management.intermediate_device()
        extra = {"attention_mask": mask[:, used].to(device)}
        return embeddings[:, used].float().to(device), None, extra
