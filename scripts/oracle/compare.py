"""Scores the same images with the original packages and with ours, and prints the differences.

    .venv/bin/python scripts/oracle/compare.py .venv-oracle/bin/python

This is what `make oracle` runs. score_with_originals.py, run with the given Python, creates small
networks with random weights and saves them in the format of the published files, which our code
then loads. Exits with 1 if a score differs by more than 1e-4, an image gradient by more than 1e-3
of its L2 norm, or the tokens of any text differ.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from texts import SCORED, varied_texts
from tokenizers import BertWordPieceTokenizer
from torch import Tensor

from hypernoise.hypernoise_core.rewards import Reward
from hypernoise.hypernoise_core.rewards.clip import ClipTokenizer
from hypernoise.hypernoise_core.rewards.head import ScoreHead
from hypernoise.hypernoise_core.rewards.hps import Hps, load_open_clip
from hypernoise.hypernoise_core.rewards.image_reward import BertTokenizer, load_image_reward
from hypernoise.hypernoise_core.tensor_file import load_strictly, read_tensors

SCORE_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3
SIZES = ((224, 224), (256, 256), (384, 384), (200, 360), (360, 200), (223, 301), (64, 96))
"""Height and width of the images."""

OPEN_CLIP = {  # two blocks of ViT-H-14's kind
    "embed_dim": 48,
    "vision_cfg": {
        "image_size": 224, "layers": 2, "width": 64, "head_width": 16, "patch_size": 14
    },
    "text_cfg": {
        "context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2
    },
}  # fmt: skip
VISION = {
    "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 224, "patch_size": 16, "layer_norm_eps": 1e-6,
}  # fmt: skip
TEXT = {
    "vocab_size": 30524, "hidden_size": 48, "encoder_hidden_size": 64, "intermediate_size": 192,
    "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12,
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """The largest differences of one reward.

    Attributes:
        gradient: relative to the gradient's L2 norm.
    """

    reward: str
    score: float
    gradient: float

    @property
    def agrees(self) -> bool:
        return self.score <= SCORE_TOLERANCE and self.gradient <= GRADIENT_TOLERANCE


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("python", type=Path, help="Python with the original packages installed")
    python = parser.parse_args().python.absolute()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_job(folder)
        script = Path(__file__).with_name("score_with_originals.py")
        environment = {**os.environ, "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
        subprocess.run([python, script, folder], check=True, env=environment)
        inputs = load_file(folder / "images.safetensors")
        theirs = load_file(folder / "scores.safetensors")
        vocabulary = python.parents[1] / "bert-base-uncased" / "vocab.txt"
        bert = bert_tokenizer(vocabulary, folder)
        hps = Hps(load_open_clip(OPEN_CLIP, folder / "hps.pt"))
        image_reward = load_image_reward(VISION, TEXT, folder / "imagereward.pt", bert)
        rows = [
            compare_reward(hps, inputs, theirs),
            compare_reward(image_reward, inputs, theirs),
            compare_head(folder / "aesthetic.pt", inputs["features"], theirs),
        ]
        different = {
            "CLIP": different_texts(ClipTokenizer()(varied_texts()), theirs["clip.tokens"]),
            "BERT": different_texts(
                torch.cat(bert(varied_texts()), dim=1),
                torch.cat((theirs["bert.tokens"], theirs["bert.mask"]), dim=1),
            ),
        }
    report(rows, different)
    return 0 if all(row.agrees for row in rows) and not any(different.values()) else 1


def write_job(folder: Path) -> None:
    """Writes job.json and images.safetensors, see score_with_originals.py."""
    job = {
        "seed": 0,
        "hps": OPEN_CLIP,
        "vision": {
            "img_size": VISION["image_size"],
            "patch_size": VISION["patch_size"],
            "embed_dim": VISION["hidden_size"],
            "depth": VISION["num_hidden_layers"],
            "num_heads": VISION["num_attention_heads"],
        },
        "text": {name: value for name, value in TEXT.items() if name != "encoder_hidden_size"},
        "prompts": SCORED,
        "texts": varied_texts(),
    }
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for number, (height, width) in enumerate(SIZES):  # coarse shapes with fine grain
        shapes = torch.rand(1, 3, 5, 5, generator=generator)
        shapes = F.interpolate(shapes, (height, width), mode="bilinear")[0]
        grain = torch.rand(3, height, width, generator=generator)
        tensors[str(number)] = (0.7 * shapes + 0.3 * grain).clamp(0, 1)
    tensors["features"] = F.normalize(torch.randn(16, 768, generator=generator), dim=-1)
    save_file(tensors, folder / "images.safetensors")


def bert_tokenizer(vocabulary: Path, folder: Path) -> BertTokenizer:
    """Our tokenizer, from a tokenizer.json made from the vocab.txt that the original reads."""
    path = folder / "tokenizer.json"
    BertWordPieceTokenizer(str(vocabulary)).save(str(path))
    return BertTokenizer(path)


def compare_reward(reward: Reward, inputs: dict[str, Tensor], theirs: dict[str, Tensor]) -> Row:
    """Compares the scores and gradients of every image with every prompt."""
    expected = theirs[f"{reward.name}.scores"]  # (I, P)
    scores, gradients = [], []
    for number in range(len(SIZES)):
        images = inputs[str(number)].repeat(len(SCORED), 1, 1, 1).requires_grad_(True)
        ours = reward.score(images, SCORED)
        (gradient,) = torch.autograd.grad(ours.sum(), images)
        scores.append(largest(ours, expected[number]))
        gradients.append(relative(gradient, theirs[f"{reward.name}.gradient.{number}"]))
    # torch's maximum, unlike Python's, is NaN if any value is.
    return Row(reward.name, *(torch.tensor(all_).max().item() for all_ in (scores, gradients)))


def compare_head(weights: Path, features: Tensor, theirs: dict[str, Tensor]) -> Row:
    """Compares the head of the aesthetic predictor, with gradients at the features."""
    head = ScoreHead(768).eval()
    load_strictly(head, read_tensors(weights)[0], weights)
    scores = head(features.requires_grad_(True))
    (ours,) = torch.autograd.grad(scores.sum(), features)
    return Row(
        "aesthetic (head)",
        largest(scores, theirs["aesthetic.scores"]),
        relative(ours, theirs["aesthetic.gradient"]),
    )


def largest(ours: Tensor, theirs: Tensor) -> float:
    """The largest absolute difference."""
    return (ours - theirs).abs().max().item()


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The largest L2 norm of a row's difference, relative to the norm of their row."""
    norms = (ours - theirs).flatten(1).norm(dim=1) / theirs.flatten(1).norm(dim=1)
    return norms.max().item()


def different_texts(ours: Tensor, theirs: Tensor) -> list[str]:
    """The varied texts whose rows differ."""
    differs = (ours != theirs).any(dim=1)
    return [text for text, bad in zip(varied_texts(), differs, strict=True) if bad]


def report(rows: list[Row], different: dict[str, list[str]]) -> None:
    print(f"{len(SIZES)} images with {len(SCORED)} prompts each, networks with random weights")
    print(f"{'reward':<18}{'largest score difference':>26}{'largest gradient difference':>29}")
    for row in rows:
        mark = "" if row.agrees else "  too large"
        print(f"{row.reward:<18}{row.score:>26.1e}{row.gradient:>29.1e}{mark}")
    for kind, texts in different.items():
        print(f"{kind} tokens: {len(texts)} of {len(varied_texts())} texts differ")
        for text in texts:
            print(f"    {text!r}")


if __name__ == "__main__":
    sys.exit(main())
