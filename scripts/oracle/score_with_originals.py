"""Scores images with the original packages, on small networks with random weights.

    .venv-oracle/bin/python scripts/oracle/score_with_originals.py FOLDER

This is what compare.py runs. FOLDER contains

    job.json            seed, sizes of the networks (hps; vision and text of imagereward), prompts
                        to score, texts to tokenize
    images.safetensors  images `0`, `1`, ... (3, H, W) in [0, 1], and features (B, 768) of images

The script writes hps.pt, imagereward.pt and aesthetic.pt, in the format of the published files, and
scores.safetensors: for each reward, the scores of every image with every prompt (I, P), and for
each image its gradient under every prompt, (P, 3, H, W); for the aesthetic head, the scores (B, 1)
and the gradients at the features; and the tokens of the texts.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from ImageReward.models.AestheticScore import MLP as AestheticHead
from originals import open_clip, small_hps, small_image_reward
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PREPARE = Compose(
    [
        Resize(224, interpolation=InterpolationMode.BICUBIC, antialias=True),
        CenterCrop(224),
        Normalize(MEAN, STD),
    ]
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    images = load_file(folder / "images.safetensors")
    features = images.pop("features")
    torch.manual_seed(job["seed"])

    hps = drawn(small_hps(job["hps"]))
    torch.save({"state_dict": hps.state_dict()}, folder / "hps.pt")
    image_reward = drawn(small_image_reward(job["vision"], job["text"]))
    torch.save(image_reward.state_dict(), folder / "imagereward.pt")
    head = drawn(AestheticHead(768))
    torch.save(head.state_dict(), folder / "aesthetic.pt")

    tokenizer = open_clip.get_tokenizer("ViT-H-14")
    prompts = tokenizer(job["prompts"])
    tokens, mask = bert_tokens(image_reward, job["prompts"])

    def hps_scores(pixels: Tensor) -> Tensor:
        found = hps(pixels, prompts)
        return torch.diagonal(found["image_features"] @ found["text_features"].T)

    def image_reward_scores(pixels: Tensor) -> Tensor:
        return image_reward.score_gard(tokens, mask, pixels).squeeze(-1)

    results = score("hps", hps_scores, images, len(prompts))
    results |= score("imagereward", image_reward_scores, images, len(prompts))
    features.requires_grad_(True)
    results["aesthetic.scores"] = head(features)
    (results["aesthetic.gradient"],) = torch.autograd.grad(
        results["aesthetic.scores"].sum(), features
    )
    results["clip.tokens"] = tokenizer(job["texts"])
    results["bert.tokens"], results["bert.mask"] = bert_tokens(image_reward, job["texts"])
    results = {name: tensor.detach().contiguous() for name, tensor in results.items()}
    save_file(results, folder / "scores.safetensors")


def drawn(model: nn.Module) -> nn.Module:
    """Draws random weights with which every part has an effect, including norms and biases."""
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim < 2:
                parameter.add_(0.1 * noise)
            else:  # a matrix, a convolution, or an embedding with ones in front
                last = 1 if parameter.ndim != 3 else -1
                parameter.copy_(noise / parameter.shape[last:].numel() ** 0.5)
    return model.eval().requires_grad_(False)


def bert_tokens(model: nn.Module, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Tokens and mask (B, 35), as in ImageReward.score."""
    found = model.blip.tokenizer(
        texts, padding="max_length", truncation=True, max_length=35, return_tensors="pt"
    )
    return found.input_ids, found.attention_mask


def score(
    name: str, scorer: Callable[[Tensor], Tensor], images: dict[str, Tensor], prompts: int
) -> dict[str, Tensor]:
    """Scores each image with each prompt; `scorer` takes (P, 3, 224, 224), an image per prompt."""
    scores, gradients = [], {}
    for number in range(len(images)):
        leaf = images[str(number)].repeat(prompts, 1, 1, 1).requires_grad_(True)
        scores.append(scorer(PREPARE(leaf)))
        (gradients[f"{name}.gradient.{number}"],) = torch.autograd.grad(scores[-1].sum(), leaf)
    return {f"{name}.scores": torch.stack(scores), **gradients}


if __name__ == "__main__":
    main()
