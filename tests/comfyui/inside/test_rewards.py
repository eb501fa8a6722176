"""Load Reward: rewards, their sum and their weights on disk."""

import pytest
import torch

PROMPT = "three green triangles"


def test_chained_rewards_add_up_and_none_comes_twice(comfy, redness, reward, images):
    both = comfy.run(
        "HyperNoise_LoadReward",
        reward="tiny-preference (embedded)",
        weight=0.5,
        add_to=redness,
    )[0]
    assert both.weights == {"redness": 2.0, "tiny-preference": 0.5}
    single = [
        comfy.run("HyperNoise_ScoreImages", images=[images], reward=[r], prompt=[PROMPT])[0]
        for r in (redness, reward, both)
    ]
    for a, b, together in zip(*single, strict=True):
        assert together == pytest.approx(a + 0.5 * b, rel=1e-5)
    with pytest.raises(ValueError, match="redness is already in add_to"):
        comfy.run("HyperNoise_LoadReward", reward="Redness (redness)", weight=1.0, add_to=both)


def test_missing_weights_name_the_switch_and_the_folder(comfy):
    with pytest.raises(FileNotFoundError, match="hypernoise_rewards.*turn on download"):
        comfy.run("HyperNoise_LoadReward", reward="PickScore (pickscore)", weight=1.0)


def test_in_bfloat16_a_reward_takes_half_the_memory(comfy, tmp_path, monkeypatch):
    """And scores as in float32, but for rounding. A small CLIP stands for PickScore's."""
    from hypernoise.tests.rewards.stand_ins import write_clip

    monkeypatch.setattr(comfy.ours("nodes.model_folders"), "rewards_folders", lambda: [tmp_path])
    torch.manual_seed(1)
    with torch.inference_mode(False):
        write_clip(tmp_path / "PickScore_v1")
    image, sizes, scores = torch.rand(1, 64, 64, 3), [], []
    for precision in ("float32", "bfloat16"):
        reward = comfy.run(
            "HyperNoise_LoadReward", reward="PickScore (pickscore)", weight=1.0, precision=precision
        )[0]
        sizes.append(reward.patchers["pickscore"].model_size())
        scores += comfy.run(
            "HyperNoise_ScoreImages", images=[image], reward=[reward], prompt=["a red circle"]
        )[0]
    assert sizes[1] == sizes[0] // 2
    assert scores[0] != scores[1] == pytest.approx(scores[0], abs=0.5)  # of 14


def test_weights_that_are_replaced_on_disk_are_loaded_anew(comfy, tmp_path, monkeypatch):
    module = comfy.ours("nodes.rewards")
    node = module.LoadReward
    monkeypatch.setattr(module.model_folders, "rewards_folders", lambda: [tmp_path])
    missing = node.fingerprint_inputs(reward="HPSv2.1 (hps)", weight=1.0)
    file = tmp_path / "HPSv2" / "HPS_v2.1_compressed.pt"
    file.parent.mkdir()
    file.write_bytes(b"one")
    found = node.fingerprint_inputs(reward="HPSv2.1 (hps)", weight=1.0)
    assert found == node.fingerprint_inputs(reward="HPSv2.1 (hps)", weight=1.0) != missing
    linked = node.fingerprint_inputs(reward=None, weight=1.0)
    file.write_bytes(b"other")
    assert node.fingerprint_inputs(reward="HPSv2.1 (hps)", weight=1.0) not in (found, missing)
    assert node.fingerprint_inputs(reward=None, weight=1.0) != linked
    assert node.fingerprint_inputs(reward="Redness (redness)", weight=1.0) == ""
