"""Training of tiny-sprint's generator: a flow-matching teacher, then a one-step student.

Letters: B batch, C, h, w latent channels and size, L tokens. SANA-Sprint's time s runs from 0 (an
image) to 1 (noise), with x_s = (1 - s) x_0 + s n. The network predicts n - x_0, which is equivalent
to SANA-Sprint's TrigFlow output in these units. The student learns from pairs of a noise and the
teacher's image for it (rectified flow, arXiv 2209.03003), mostly at s = 1.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Gemma2Model

from ...progress import progress_bar
from .generator import INSTRUCTION, build_text_encoder, build_tokenizer, build_transformer
from .optimization import Ema, MuonAdamW

_BATCH = 128
_TEXT_LENGTH = 14  # the longest caption with <bos> and the instruction token
_INSTRUCTION_SHARE = 0.75  # share of texts that start with the pipeline's instruction
_EMPTY_SHARE = 0.1  # share of empty texts for the teacher, for classifier-free guidance
_GUIDANCE_INPUT = 0.45  # the pipeline's guidance 4.5 x guidance_embeds_scale 0.1
_FULL_NOISE_SHARE = 0.6  # share of student samples at s = 1
# Standard deviation of the random change to a pair's noise: makes the student a smooth function of
# the noise, whose gradient a hypernetwork can follow, and keeps it from memorising its pairs.
_NOISE_JITTER = 0.1


@dataclass
class Generator:
    """A velocity network and the text encoder that feeds it."""

    transformer: nn.Module
    text_encoder: Gemma2Model

    def velocity(self, x: Tensor, s: Tensor, tokens: Tensor) -> Tensor:
        """Predicts n - x_0 from x_s (B, C, h, w), s (B,) in [0, 1] and token ids (B, L)."""
        mask = (tokens != 0).long()
        text = self.text_encoder(input_ids=tokens, attention_mask=mask)[0]
        guidance = torch.full((len(x),), _GUIDANCE_INPUT)
        return self.transformer(
            x, text, timestep=s, guidance=guidance, encoder_attention_mask=mask, return_dict=False
        )[0]


def tokenize(texts: list[str], rng: random.Random) -> Tensor:
    """Token ids (B, L), padded with 0; a share of the texts starts with the instruction."""
    texts = [f"{INSTRUCTION}{t}" if rng.random() < _INSTRUCTION_SHARE else t for t in texts]
    tokens = build_tokenizer()(
        texts, padding="max_length", max_length=_TEXT_LENGTH, return_tensors="pt"
    )
    return tokens.input_ids


def _optimize(
    generator: Generator,
    loss_of: Callable[[], Tensor],
    *,
    steps: int,
    learning_rate: float,
    description: str,
    report: Callable[[Generator, int], None],
) -> Generator:
    """Minimises `loss_of()` over both networks; returns their moving average."""
    modules = [generator.transformer, generator.text_encoder]
    for module in modules:
        module.train().requires_grad_(True)
    optimizer = MuonAdamW(modules, steps=steps, adamw_lr=learning_rate, muon_lr=learning_rate)
    averages = [Ema(module) for module in modules]
    generator.transformer.compile()  # a third faster on a CPU; the averages stay plain modules
    running = None
    for step in (bar := progress_bar(range(1, steps + 1), desc=description, mininterval=10)):
        loss = loss_of()
        optimizer.step(loss)
        for average, module in zip(averages, modules, strict=True):
            average.update(module)
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        bar.set_postfix_str(f"loss {running:.4f}", refresh=False)
        if step % 400 == 0 or step == steps:
            report(Generator(*(average.module for average in averages)), step)
    return Generator(*(average.module for average in averages))


def train_teacher(
    latents: Tensor,
    texts: list[str],
    *,
    steps: int,
    seed: int,
    report: Callable[[Generator, int], None],
) -> Generator:
    """Trains by flow matching on latents (N, C, h, w) with their captions."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    tokens = tokenize(texts, rng)
    empty = tokenize([""], random.Random(1))[0] * 0
    empty[0] = tokens[0, 0]  # <bos> alone
    generator = Generator(build_transformer(), build_text_encoder())
    generator.transformer.to(memory_format=torch.channels_last)

    def loss_of() -> Tensor:
        index = torch.randint(len(latents), (_BATCH,))
        text = torch.where(torch.rand(_BATCH, 1) < _EMPTY_SHARE, empty, tokens[index])
        image, noise = latents[index], torch.randn(_BATCH, *latents.shape[1:])
        s = torch.sigmoid(torch.randn(_BATCH) + 0.3)
        at = s[:, None, None, None]
        x = ((1 - at) * image + at * noise).contiguous(memory_format=torch.channels_last)
        return F.mse_loss(generator.velocity(x, s, text), noise - image)

    return _optimize(
        generator,
        loss_of,
        steps=steps,
        learning_rate=2e-3,
        description="teacher",
        report=report,
    )


@torch.no_grad()
def integrate(
    generator: Generator, noise: Tensor, tokens: Tensor, *, steps: int, guidance: float = 1.0
) -> Tensor:
    """Euler steps from noise (B, C, h, w) at s = 1 to an image's latents at s = 0.

    `guidance` above 1 is classifier-free guidance and doubles the cost.
    """
    x = noise
    empty = torch.zeros_like(tokens)
    empty[:, 0] = tokens[:, 0]
    for step in range(steps):
        s = torch.full((len(x),), 1 - step / steps)
        v = generator.velocity(x, s, tokens)
        if guidance != 1.0:
            without = generator.velocity(x, s, empty)
            v = without + guidance * (v - without)
        x = x - v / steps
    return x


@dataclass(frozen=True)
class Pairs:
    """Noises (N, C, h, w), the teacher's latents for them, and the token ids (N, L)."""

    noise: Tensor
    image: Tensor
    tokens: Tensor


def make_pairs(
    teacher: Generator,
    texts: list[str],
    shape: tuple[int, int, int],
    *,
    steps: int,
    guidance: float,
    seed: int,
) -> Pairs:
    """One pair per text, with latents of `shape` (C, h, w)."""
    torch.manual_seed(seed)
    tokens = tokenize(texts, random.Random(seed))
    noise = torch.randn(len(texts), *shape)
    images = [
        integrate(teacher, noise[i : i + 256], tokens[i : i + 256], steps=steps, guidance=guidance)
        for i in progress_bar(range(0, len(texts), 256), desc="pairs", mininterval=10)
    ]
    return Pairs(noise, torch.cat(images), tokens)


def train_student(
    teacher: Generator,
    pairs: Pairs,
    *,
    steps: int,
    seed: int,
    report: Callable[[Generator, int], None],
) -> Generator:
    """Trains by regression on the teacher's straightened paths, from the teacher's weights."""
    torch.manual_seed(seed)

    def loss_of() -> Tensor:
        index = torch.randint(len(pairs.noise), (_BATCH,))
        s = torch.where(torch.rand(_BATCH) < _FULL_NOISE_SHARE, 1.0, torch.rand(_BATCH))
        at = s[:, None, None, None]
        noise, image = pairs.noise[index], pairs.image[index]
        noise = (noise + _NOISE_JITTER * torch.randn_like(noise)) / (1 + _NOISE_JITTER**2) ** 0.5
        x = ((1 - at) * image + at * noise).contiguous(memory_format=torch.channels_last)
        velocity = teacher.velocity(x, s, pairs.tokens[index])
        return F.huber_loss(velocity, noise - image, delta=0.5)

    return _optimize(
        teacher,
        loss_of,
        steps=steps,
        learning_rate=1e-3,
        description="student",
        report=report,
    )
