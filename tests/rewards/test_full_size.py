"""The published networks at their full size, with random weights under the published names.

`published/` lists the names and shapes of the original packages' networks, see scripts/oracle.
"""

from pathlib import Path

import huggingface_hub
import pytest
import torch

from hypernoise.hypernoise_core.rewards import WeightStore, weights
from hypernoise.hypernoise_core.rewards.clip import open_clip
from hypernoise.hypernoise_core.rewards.hps import Hps
from hypernoise.hypernoise_core.rewards.image_reward import ImageReward
from hypernoise.hypernoise_core.tensor_file import load_strictly
from hypernoise.tests.rewards import stand_ins
from hypernoise.tests.trust.tallies import LEVEL

PUBLISHED = Path(__file__).with_name("published")
UNUSED = {"position_ids", "vision_proj", "text_proj"}  # parts of ImageReward.pt that score nothing


def published(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published file."""
    lines = (PUBLISHED / f"{name}.txt").read_text().splitlines()
    entries = (line.rsplit(" ", 1) for line in lines)
    return {
        key: () if shape == "scalar" else tuple(map(int, shape.split("x")))
        for key, shape in entries
    }


def write_checkpoint(path: Path, name: str, wrap: bool) -> None:
    """Half precision, small enough that nothing overflows."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        key: torch.randn(shape, generator=generator).mul_(0.02).half()
        for key, shape in published(name).items()
    }
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": tensors} if wrap else tensors, path)


def test_the_published_names_are_those_of_hps_s_network():
    """Names and shapes alone; with weights and a pass, below, it takes half a minute."""
    with torch.device("meta"):
        network = open_clip().CLIP(**open_clip().get_model_config("ViT-H-14"))
        tensors = {name: torch.empty(shape) for name, shape in published("hps").items()}
    load_strictly(network, tensors, PUBLISHED / "hps.txt")


@pytest.mark.slow
@pytest.mark.parametrize("cls", [Hps, ImageReward])
def test_a_checkpoint_with_the_published_names_loads_key_for_key(cls, tmp_path, monkeypatch):
    if cls is Hps and LEVEL == "quick":
        pytest.skip("a network of 2 GB: levels short and long of make trust")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "none"))
    # Random weights have another checksum than the published ones.
    monkeypatch.setattr(weights, "check", lambda path, file: None)
    checkpoint = cls.files[0].inside(tmp_path)
    write_checkpoint(checkpoint, cls.name, wrap=cls is Hps)
    if cls is ImageReward:
        stand_ins.write_tokenizer(cls.files[1].inside(tmp_path))
    reward = cls.load(WeightStore(tmp_path, torch.bfloat16))
    used = [n for n in published(cls.name) if not UNUSED & set(n.split("."))]
    state = [name for name in reward.state_dict() if not name.endswith("position_ids")]
    assert len(state) == len(used)
    expected = sum(torch.Size(published(cls.name)[name]).numel() for name in used)
    assert sum(reward.state_dict()[name].numel() for name in state) == expected
    images = torch.rand(1, 3, 256, 320, requires_grad=True)
    score = reward.score(images, ["a red circle"])
    score.sum().backward()
    assert torch.isfinite(score).all() and images.grad.abs().sum() > 0
