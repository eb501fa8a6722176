"""tiny-preference: a small CLIP that scores how well an image of the tiny world fits a caption.

It is trained contrastively on drawn scenes of the training captions. Each batch consists of groups
of captions that differ in one word, so that the model has to read every word. Each caption must
also prefer its image to spoilt ones, as people prefer clear images to unclear ones.
"""

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import processors
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from ...progress import progress_bar
from ..scenes import IMAGE_SIZE
from .generator import build_tokenizer, vocabulary
from .optimization import MuonAdamW
from .pool import Pool

_GROUPS, _GROUP_SIZE = 40, 4  # of captions in a batch
_SPOILT = 64  # images of a batch that are also shown spoilt


def build_preference() -> CLIPModel:
    """A CLIP of 0.6 million parameters: 8x8 patches, width 96, four image and two text layers."""
    width = {"hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 4}
    config = CLIPConfig(
        projection_dim=64,
        vision_config={
            **width,
            "num_hidden_layers": 4,
            "image_size": IMAGE_SIZE,
            "patch_size": 8,
            "projection_dim": 64,
        },
        text_config={
            **width,
            "num_hidden_layers": 2,
            "vocab_size": len(vocabulary()),
            "max_position_embeddings": 20,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "bos_token_id": 2,
            "projection_dim": 64,
        },
    )
    return CLIPModel(config)


def build_preference_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of tiny-sprint with an <eos> after each text, where CLIP pools its features."""
    tokenizer, ids = build_tokenizer(), vocabulary()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>",
        special_tokens=[("<bos>", ids["<bos>"]), ("<eos>", ids["<eos>"])],
    )
    tokenizer.model_max_length = 20
    return tokenizer


def similarities(
    model: CLIPModel, tokenizer: PreTrainedTokenizerFast, images: Tensor, texts: list[str]
) -> Tensor:
    """CLIP logits, scale x cosine, of images (B, 3, H, W) in [0, 1] and T texts: (B, T)."""
    tokens = tokenizer(texts, return_tensors="pt", padding=True)
    outputs = model(
        pixel_values=images * 2 - 1,
        input_ids=tokens.input_ids,
        attention_mask=tokens.attention_mask,
    )
    return outputs.logits_per_image


def _augment(images: Tensor, rng: random.Random) -> Tensor:
    """Adds blur and grain, as in the images of a generator."""
    if rng.random() < 0.5:
        size = rng.choice((24, 32, 40, 48))
        small = F.interpolate(images, size=size, mode="area")
        images = F.interpolate(small, size=IMAGE_SIZE, mode="bilinear")
    return images + torch.randn_like(images) * rng.choice((0.0, 0.02, 0.05, 0.1))


def _spoil(images: Tensor, others: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] with the flaws of a poor generator: blurred, warped or blended.

    `others` (B, 3, H, W) are the images to blend with.
    """
    size, count = images.shape[-1], len(images)
    small = F.interpolate(images, size=size // 6, mode="area")
    melted = F.interpolate(small, size=size, mode="bilinear")
    bends = torch.randn(count, 2, 5, 5) * 0.15  # in half images
    flow = F.interpolate(bends, size=size, mode="bicubic").permute(0, 2, 3, 1)
    plain = F.affine_grid(torch.eye(2, 3).expand(count, 2, 3), images.shape, align_corners=False)
    bent = F.grid_sample(images, plain + flow, padding_mode="border", align_corners=False)
    double = images.lerp(others, torch.empty(count, 1, 1, 1).uniform_(0.3, 0.7))
    kind = torch.randint(3, (count,))
    return torch.stack([melted, bent, double])[kind, torch.arange(count)]


def train_preference(pool: Pool, *, steps: int, seed: int) -> CLIPModel:
    """Trains tiny-preference on a pool; shows the in-batch accuracy in the progress bar."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    model, tokenizer = build_preference(), build_preference_tokenizer()
    optimizer = MuonAdamW([model], steps=steps, adamw_lr=1e-3, muon_lr=2e-3)
    for step in (bar := progress_bar(range(steps), desc="tiny-preference", mininterval=5)):
        anchors = [rng.randrange(len(pool)) for _ in range(_GROUPS)]
        indices = [i for a in anchors for i in pool.lookalikes(a, _GROUP_SIZE, rng)]
        texts = [pool.captions[i].text for i in indices]
        distinct = sorted(set(texts))
        clear = pool.batch(indices)
        spoilt = _spoil(clear[:_SPOILT], clear[1 : _SPOILT + 1])
        images = _augment(torch.cat([clear, spoilt]), rng)
        all_logits = similarities(model, tokenizer, images, distinct)
        logits = all_logits[: len(clear)]
        target = torch.tensor([distinct.index(text) for text in texts])
        same = F.one_hot(target, len(distinct)).float()
        preferred = F.log_softmax(all_logits, 0)[: len(clear)]
        to_images = -(same / same.sum(0) * preferred).sum(0).mean()
        optimizer.step((F.cross_entropy(logits, target) + to_images) / 2)
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.0)
        if step % 50 == 0:
            right = (logits.argmax(1) == target).float().mean().item()
            bar.set_postfix_str(f"accuracy {right:.3f}, scale {model.logit_scale.exp():.1f}")
    return model.eval().requires_grad_(False)


def save_preference(model: CLIPModel, folder: Path) -> None:
    """Writes the model and its tokenizer in transformers' format."""
    model.save_pretrained(folder)
    build_preference_tokenizer().save_pretrained(folder)
