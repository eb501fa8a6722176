"""Trains tiny-sprint and tiny-preference from scratch.

Run `python -m hypernoise.training.tiny_world.recipe.build`.

Each stage saves its result in the work folder and is skipped if the result exists, so an
interrupted run continues where it stopped. Takes a few hours on 2 cores and needs a C++ compiler
(for torch.compile).
"""

import argparse
import copy
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC
from transformers import CLIPModel

from ....hypernoise_core.text_file import read_text
from ..captions import CATEGORIES, captions_by_category
from ..checker import score_images
from ..scenes import sample_captions
from .autoencoder import encode_pool, refine_decoder, train_autoencoder
from .distillation import (
    Generator,
    Pairs,
    integrate,
    make_pairs,
    tokenize,
    train_student,
    train_teacher,
)
from .generator import build_pipeline, build_text_encoder, build_transformer
from .pool import Pool, draw_pool
from .preference import save_preference, train_preference

POOL_SIZE = 60_000
PREFERENCE_STEPS = 1300
AUTOENCODER_STEPS = 1000
REFINING_STEPS = 600
TEACHER_STEPS = 1800
SAMPLING_STEPS = 8  # teacher steps for the student's pairs
SAMPLING_GUIDANCE = 2.0
PAIRS = 16_000
STUDENT_STEPS = 1400
_CHECKED_PER_CATEGORY = 20


@dataclass
class Build:
    """The stages; each is computed once and saved in `work`."""

    work: Path
    seed: int

    @cached_property
    def pool(self) -> Pool:
        """Drawn scenes of training captions."""
        return draw_pool(POOL_SIZE, self.seed)

    @cached_property
    def preference(self) -> Path:
        """Folder of the trained tiny-preference."""
        folder = self.work / "tiny-preference"
        if not (folder / "model.safetensors").exists():
            model = train_preference(self.pool, steps=PREFERENCE_STEPS, seed=self.seed)
            save_preference(model, folder)
        return folder

    @cached_property
    def autoencoder(self) -> AutoencoderDC:
        """The trained autoencoder."""
        folder = self.work / "vae"
        if not (folder / "config.json").exists():
            train_autoencoder(self.pool, steps=AUTOENCODER_STEPS, seed=self.seed).save_pretrained(
                folder
            )
        return AutoencoderDC.from_pretrained(folder).eval()

    @cached_property
    def refined_autoencoder(self) -> AutoencoderDC:
        """The autoencoder that ships: the same latents, decoded more sharply."""
        folder = self.work / "refined_vae"
        if not (folder / "config.json").exists():
            refine_decoder(
                copy.deepcopy(self.autoencoder), self.pool, steps=REFINING_STEPS, seed=self.seed + 1
            ).save_pretrained(folder)
        return AutoencoderDC.from_pretrained(folder).eval()

    @cached_property
    def teacher(self) -> Generator:
        """The flow-matching teacher."""
        return self._generator("teacher", SAMPLING_STEPS, self._train_teacher)

    @cached_property
    def pairs(self) -> Pairs:
        """Noises and the images that the teacher generates from them."""

        def make() -> Pairs:
            captions = sample_captions(PAIRS, random.Random(self.seed + 1), held_out=False)
            return make_pairs(
                self.teacher,
                [caption.text for caption in captions],
                tuple(self._latents.shape[1:]),
                steps=SAMPLING_STEPS,
                guidance=SAMPLING_GUIDANCE,
                seed=self.seed,
            )

        return Pairs(**self._kept("pairs", lambda: vars(make())))

    @cached_property
    def student(self) -> Generator:
        """The one-step generator."""
        return self._generator("student", 1, self._train_student)

    @cached_property
    def _latents(self) -> torch.Tensor:
        return self._kept("latents", lambda: encode_pool(self.autoencoder, self.pool, POOL_SIZE))

    def _train_teacher(self, report: Callable) -> Generator:
        texts = [caption.text for caption in self.pool.captions]
        return train_teacher(
            self._latents, texts, steps=TEACHER_STEPS, seed=self.seed, report=report
        )

    def _train_student(self, report: Callable) -> Generator:
        return train_student(
            self.teacher, self.pairs, steps=STUDENT_STEPS, seed=self.seed, report=report
        )

    def _kept(self, name: str, make: Callable[[], Any]) -> Any:
        path = self.work / f"{name}.pt"
        if not path.exists():
            torch.save(make(), temporary := path.with_suffix(".tmp"))
            temporary.rename(path)
        return torch.load(path, weights_only=True)

    def _generator(self, name: str, steps: int, train: Callable[[Callable], Generator]):
        def make() -> dict[str, Any]:
            trained = train(lambda generator, step: self._report(name, generator, step, steps))
            return {part: module.state_dict() for part, module in vars(trained).items()}

        state = self._kept(name, make)
        generator = Generator(build_transformer(), build_text_encoder())
        for part, module in vars(generator).items():
            module.load_state_dict(state[part])
            module.eval().requires_grad_(False)
        generator.transformer.to(memory_format=torch.channels_last)
        return generator

    @torch.no_grad()
    def _report(self, name: str, generator: Generator, step: int, sampling_steps: int) -> None:
        """Prints the checker's score on held-out captions; nothing depends on it."""
        rng = random.Random(99)
        pools = captions_by_category(held_out=True)
        captions = [rng.choice(pools[c]) for c in CATEGORIES for _ in range(_CHECKED_PER_CATEGORY)]
        tokens = tokenize([caption.text for caption in captions], rng)
        shape = (len(captions), *self._latents.shape[1:])
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(9))
        latents = integrate(generator, noise, tokens, steps=sampling_steps)
        vae = self.autoencoder
        images = vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5
        score = score_images(images, captions)
        parts = ", ".join(f"{k} {v:.2f}" for k, v in score.categories.items())
        print(f"\n{name} after {step} steps: checker {score.mean:.3f} ({parts})", flush=True)

    def write(self, out: Path) -> None:
        """Writes tiny-sprint and tiny-preference in the form that ships."""
        pipeline, student = build_pipeline(), self.student
        vae = self.refined_autoencoder
        pipeline.vae.load_state_dict(vae.state_dict())
        pipeline.vae.register_to_config(scaling_factor=vae.config.scaling_factor)
        pipeline.transformer.load_state_dict(student.transformer.state_dict())
        pipeline.text_encoder.load_state_dict(student.text_encoder.state_dict())
        pipeline.save_pretrained(out / "tiny-sprint")
        save_preference(CLIPModel.from_pretrained(self.preference), out / "tiny-preference")
        for path in (
            *out.glob("tiny-*/**/tokenizer_config.json"),
            *out.glob("tiny-*/model_*.json"),
        ):
            _name_tokenizer_for_every_transformers(path)


def _name_tokenizer_for_every_transformers(path: Path) -> None:
    """transformers 5 writes a class name that version 4 lacks; both know the old one."""
    text = read_text(path)
    path.write_text(text.replace("TokenizersBackend", "PreTrainedTokenizerFast"), encoding="utf-8")


def main() -> None:
    """Parses the command line and trains both models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, default=Path("out/tiny_world"), help="results of stages"
    )
    parser.add_argument("--out", type=Path, default=Path("assets"), help="output folder")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    Build(options.work, options.seed).write(options.out)
    print(f"wrote {options.out} in {(time.monotonic() - start) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
