"""The architecture of tiny-sprint: a small SANA-Sprint pipeline for the tiny world.

It uses the classes of the published model (SanaTransformer2DModel with guidance embedding,
AutoencoderDC, Gemma2, SCMScheduler), so every code path of SANA-Sprint also runs on it.
"""

import torch
from diffusers import AutoencoderDC, SanaSprintPipeline, SanaTransformer2DModel, SCMScheduler
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import Gemma2Config, Gemma2Model, PreTrainedTokenizerFast

from ..captions import COLORS, NUMBERS, PREFIXES, RELATIONS, SHAPES
from ..scenes import IMAGE_SIZE

LATENT_CHANNELS = 16
LATENT_SIZE = IMAGE_SIZE // 8
TEXT_WIDTH = 64
_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
# SanaSprintPipeline puts a long instruction for a large language model before each prompt. Its
# words have no meaning here, so the tokenizer reads all of it as one token.
INSTRUCTION = "<instruction>"


def vocabulary() -> dict[str, int]:
    """The ids of the special tokens and of every word in the captions."""
    phrases = (*PREFIXES, *NUMBERS, *COLORS, *RELATIONS, *SHAPES, *(s + "s" for s in SHAPES))
    words = sorted({word for phrase in (*phrases, "a and") for word in phrase.split()})
    return {word: i for i, word in enumerate((*_SPECIAL, INSTRUCTION, *words))}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer that starts each text with <bos>, like Gemma's."""
    ids = vocabulary()
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"Given a user prompt[\s\S]*User Prompt: "), INSTRUCTION),
            normalizers.Lowercase(),
            normalizers.Replace(INSTRUCTION, f"{INSTRUCTION} "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", ids["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        padding_side="right",
        model_max_length=300,
    )


def build_text_encoder() -> Gemma2Model:
    """A two-layer Gemma2."""
    config = Gemma2Config(
        vocab_size=len(vocabulary()),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        query_pre_attn_scalar=16,
        max_position_embeddings=512,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        attn_implementation="eager",
        use_cache=False,
    )
    return Gemma2Model(config)


def build_transformer() -> SanaTransformer2DModel:
    """Four SANA blocks of width 128 on 8x8 latents."""
    return SanaTransformer2DModel(
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_attention_heads=8,
        attention_head_dim=16,
        num_layers=4,
        num_cross_attention_heads=8,
        cross_attention_head_dim=16,
        cross_attention_dim=128,
        caption_channels=TEXT_WIDTH,
        mlp_ratio=2.5,
        sample_size=LATENT_SIZE,
        patch_size=1,
        interpolation_scale=1.0,
        guidance_embeds=True,
        guidance_embeds_scale=0.1,
        qk_norm="rms_norm_across_heads",
        timestep_scale=1000.0,
    )


def build_vae() -> AutoencoderDC:
    """A deep-compression autoencoder: 64x64 RGB to 16 channels of 8x8, unit variance."""
    widths = (16, 32, 64, 128)
    depths = (0, 1, 1, 1)  # no layers at full resolution, where they cost most
    return AutoencoderDC(
        latent_channels=LATENT_CHANNELS,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=depths,
        decoder_layers_per_block=depths,
        encoder_qkv_multiscales=((), (), (), ()),
        decoder_qkv_multiscales=((), (), (), ()),
        downsample_block_type="pixel_unshuffle",
        upsample_block_type="pixel_shuffle",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=1.0,
    )


def build_pipeline(seed: int = 0) -> SanaSprintPipeline:
    """The whole pipeline with random weights, from which training starts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = SanaSprintPipeline(
            tokenizer=build_tokenizer(),
            text_encoder=build_text_encoder(),
            vae=build_vae(),
            transformer=build_transformer(),
            scheduler=SCMScheduler(prediction_type="trigflow", sigma_data=0.5),
        )
    for module in (pipeline.text_encoder, pipeline.vae, pipeline.transformer):
        module.eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
