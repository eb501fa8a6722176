"""Every reward: differentiable, frozen, independent of its batch, clear about bad input."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms.functional import normalize

from hypernoise.hypernoise_core.rewards import REWARDS, Ensemble, clip, get_reward, load_rewards
from hypernoise.hypernoise_core.rewards.aesthetic import Aesthetic
from hypernoise.hypernoise_core.rewards.clip import ClipTokenizer, TransformersClip
from hypernoise.hypernoise_core.rewards.clip_score import ClipScore
from hypernoise.hypernoise_core.rewards.head import ScoreHead
from hypernoise.hypernoise_core.rewards.hps import Hps, load_open_clip
from hypernoise.hypernoise_core.rewards.image_reward import BertTokenizer, load_image_reward
from hypernoise.hypernoise_core.rewards.images import Preprocess
from hypernoise.hypernoise_core.rewards.pickscore import PickScore
from hypernoise.hypernoise_core.rewards.reward import check_size
from hypernoise.hypernoise_core.rewards.tiny_preference import TinyTokenizer
from hypernoise.tests.rewards import stand_ins

PROMPTS = ["a red circle", "two blue squares", "a circle"]
NAMES = [cls.name for cls in REWARDS]
BLIND = {"aesthetic", "redness"}  # they look at the image alone
PUBLISHED = {  # what the networks were trained with: mean and deviation of red, green and blue
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
}
HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}
LOSS_OFFSETS = {
    "hps": 1, "imagereward": 2, "clip": 100, "pickscore": 30, "aesthetic": 10, "redness": 0,
    "tiny-preference": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def rewards(tmp_path_factory) -> dict:
    """One of each, small, with random weights; clip and aesthetic stand on the same CLIP."""
    folder: Path = tmp_path_factory.mktemp("rewards")
    torch.manual_seed(0)
    stand_ins.write_hps(folder / "hps.pt")
    torch.save(stand_ins.image_reward_tensors(stand_ins.VISION, stand_ins.TEXT), folder / "blip.pt")
    tokenizer = BertTokenizer(stand_ins.write_tokenizer(folder / "tokenizer.json"))
    first, second = (
        TransformersClip(stand_ins.clip_model(), ClipTokenizer(), Preprocess(32)) for _ in range(2)
    )
    found = [
        Hps(load_open_clip(stand_ins.OPEN_CLIP, folder / "hps.pt")),
        load_image_reward(stand_ins.VISION, stand_ins.TEXT, folder / "blip.pt", tokenizer),
        ClipScore(first),
        PickScore(second),
        Aesthetic(first, stand_ins.lively(ScoreHead(24))),
        *load_rewards({"redness": 1.0, "tiny-preference": 1.0}).members.values(),
    ]
    return {reward.name: reward for reward in found}


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 48, 64, generator=torch.Generator().manual_seed(1))


def test_each_registered_reward_is_tested_here(rewards):
    assert list(rewards) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_every_image_and_no_weight(rewards, images, name):
    rewards[name].score(images.requires_grad_(True), PROMPTS).sum().backward()
    assert (images.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(parameter.grad is None for parameter in rewards[name].parameters())
    assert not any(parameter.requires_grad for parameter in rewards[name].parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_score_depends_on_its_image_and_prompt_alone(rewards, images, name):
    reward = rewards[name]
    together = reward.score(images, PROMPTS)
    assert together.shape == (3,) and together.dtype == torch.float32
    alone = [reward.score(images[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
    others = reward.score(images, PROMPTS[1:] + PROMPTS[:1])
    assert torch.equal(together, others) == (name in BLIND)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "redness"])
def test_a_network_sees_colours_as_it_was_trained_to(rewards, name):
    """A picture of one colour reaches it as (colour - mean) / deviation."""
    reward, seen = rewards[name], []
    first = next(module for module in reward.modules() if isinstance(module, nn.Conv2d))
    handle = first.register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    colour = torch.tensor([0.1, 0.5, 0.9]).view(1, 3, 1, 1)
    reward.score(colour.expand(1, 3, 48, 64), PROMPTS[:1])
    handle.remove()
    expected = normalize(colour, **(HALF if name == "tiny-preference" else PUBLISHED))
    (pixels,) = seen
    torch.testing.assert_close(pixels, expected.expand_as(pixels), rtol=0, atol=1e-5)


def fitting(reward, name) -> torch.Tensor:
    """Images that need no resize."""
    size = 64 if name == "tiny-preference" else 32
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", ["clip", "pickscore", "tiny-preference"])
def test_a_clip_s_score_is_its_own_logit(rewards, name):
    reward, images = rewards[name], fitting(rewards, name)
    pixels = normalize(images, **(HALF if name == "tiny-preference" else PUBLISHED))
    tokens = reward.encoder.tokenizer(PROMPTS)
    output = reward.encoder.model(input_ids=tokens, pixel_values=pixels)
    torch.testing.assert_close(
        reward.score(images, PROMPTS), output.logits_per_image.diagonal(), rtol=1e-4, atol=1e-5
    )


def test_hps_is_the_cosine_in_openclip(rewards):
    reward, images = rewards["hps"], fitting(rewards, "hps")
    pixels, tokens = normalize(images, **PUBLISHED), reward.encoder.tokenizer(PROMPTS)
    image_features, text_features, scale = reward.encoder.model(pixels, tokens)
    cosine = F.cosine_similarity(image_features, text_features)
    assert scale > 2
    torch.testing.assert_close(reward.score(images, PROMPTS), cosine, rtol=1e-4, atol=1e-5)


def linear_layers(x: torch.Tensor, head: nn.Module) -> torch.Tensor:
    """Five one behind the other, nothing between them: (B, D) -> (B,)."""
    layers = [module for module in head.modules() if isinstance(module, nn.Linear)]
    assert [layer.out_features for layer in layers] == [1024, 128, 64, 16, 1]
    for layer in layers:
        x = layer(x)
    return x.squeeze(-1)


def test_the_aesthetic_score_is_linear_in_the_unit_features(rewards):
    reward, images = rewards["aesthetic"], fitting(rewards, "aesthetic")
    model = reward.encoder.model
    pooled = model.vision_model(pixel_values=normalize(images, **PUBLISHED)).pooler_output
    unit = F.normalize(model.visual_projection(pooled), dim=-1)
    expected = linear_layers(unit, reward.head)
    torch.testing.assert_close(reward.score(images, PROMPTS), expected, rtol=1e-4, atol=1e-4)


def test_imagereward_is_the_head_on_the_text_s_first_token_in_published_units(rewards):
    """The text without any padding, which plays no part."""
    reward, images = rewards["imagereward"], fitting(rewards, "imagereward")
    patches = reward.vision(pixel_values=normalize(images, **PUBLISHED)).last_hidden_state
    raw = []
    for ids, of_image in zip([[2, 4, 5, 6, 3], [2, 7, 8, 10, 9, 3]], patches[:2], strict=True):
        joint = reward.text(
            input_ids=torch.tensor([ids]), encoder_hidden_states=of_image[None]
        ).last_hidden_state
        raw.append(linear_layers(joint[:, 0], reward.head))
    expected = (torch.cat(raw) - 0.16717362830052426) / 1.0333394966054072
    got = reward.score(images[:2], ["a red circle", "two blue squares"])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_redness_is_red_minus_the_mean_of_the_others(rewards):
    colour = torch.tensor([0.25, 0.5, 1.0]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    assert rewards["redness"].score(colour, ["a"]).item() == 0.25 - 0.75


def test_clips_read_77_tokens_start_and_end_among_them():
    tokens = ClipTokenizer()(["red " * 100, "red"])
    (red,) = set(tokens[0, 1:-1].tolist())
    assert tokens.shape == (2, 77)
    assert (tokens[0, 0], tokens[0, -1]) == (49406, 49407)
    assert tokens[1].tolist() == [49406, red, 49407] + [0] * 74


def test_the_tiny_world_s_clip_reads_as_many_tokens_as_it_has_places_for(rewards):
    model = rewards["tiny-preference"].encoder.model
    tokenizer = TinyTokenizer()
    assert tokenizer.length == model.config.text_config.max_position_embeddings
    assert tokenizer(["a red circle " * 40]).shape == (1, tokenizer.length)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_the_offset_minus_the_mean_score(rewards, images, name):
    reward = rewards[name]
    expected = LOSS_OFFSETS[name] - reward.score(images, PROMPTS).mean()
    assert reward.loss(images, PROMPTS).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("name", NAMES)
def test_recomputed_activations_give_the_same_gradient(rewards, images, name):
    reward = rewards[name]
    gradients = []
    for _ in range(2):
        leaf = images.clone().requires_grad_(True)
        gradients.append(torch.autograd.grad(reward.score(leaf, PROMPTS).sum(), leaf)[0])
        reward.checkpoint_activations()
    torch.testing.assert_close(*gradients)


def test_checkpointing_keeps_fewer_activations(rewards, images):
    """Counted in bytes that autograd keeps for the backward pass."""

    def kept(reward) -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.numel()) or t, lambda t: t
        ):
            reward.score(images.clone().requires_grad_(True), PROMPTS)
        return sum(sizes)

    reward = ClipScore(TransformersClip(stand_ins.clip_model(), ClipTokenizer(), Preprocess(32)))
    before = kept(reward)
    reward.checkpoint_activations()
    assert kept(reward) < 0.7 * before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("bad", "prompts", "message"),
    [
        (torch.rand(0, 3, 64, 64), [], r"\(0, 3, 64, 64\)"),
        (torch.rand(1, 4, 64, 64), ["a"], r"\(1, 4, 64, 64\)"),
        (torch.rand(3, 64, 64), ["a"], r"\(3, 64, 64\)"),
        (torch.rand(2, 3, 64, 64), ["a"], "1 prompts for 2 images"),
        (torch.rand(2, 3, 64, 64), "ab", "one prompt per image"),
        (torch.rand(1, 3, 1, 1), ["a"], "1 x 1 pixels is too small"),
        (torch.rand(1, 3, 8, 500), ["a"], "500 x 8 pixels is too small"),
        (torch.full((1, 3, 64, 64), float("nan")), ["a"], "image 0 has values from nan"),
        (torch.full((1, 3, 64, 64), float("inf")), ["a"], "image 0 has values from inf"),
        (torch.stack([torch.zeros(3, 64, 64), torch.full((3, 64, 64), 255.0)]), ["a", "b"], "e 1"),
        (-torch.ones(1, 3, 64, 64), ["a"], "from -1 to -1"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), ["a"], "divide by 255"),
    ],
)
def test_what_cannot_be_scored_is_refused(rewards, name, bad, prompts, message):
    with pytest.raises(ValueError, match=message):
        rewards[name].score(bad, prompts)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BLIND])
def test_a_prompt_that_is_cut_off_is_told(rewards, name):
    long = "a red circle " * 40
    assert rewards[name].prompt_warnings(PROMPTS) == []
    (told,) = rewards[name].prompt_warnings([*PROMPTS, long, long])
    assert rewards[name].title in told and "tokens" in told
    images = torch.rand(1, 3, 64, 64)
    longer = rewards[name].score(images, [long + "two blue squares"])
    torch.testing.assert_close(rewards[name].score(images, [long]), longer)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BLIND])
def test_a_prompt_that_just_fits_is_not_said_to_be_cut_off(rewards, name):
    tokenizer = getattr(rewards[name], "tokenizer", None) or rewards[name].encoder.tokenizer
    words = tokenizer.length - tokenizer.count("")
    assert rewards[name].prompt_warnings(["red " * words]) == []
    assert len(rewards[name].prompt_warnings(["red " * (words + 1)])) == 1


def test_a_clip_forgets_the_prompts_that_were_scored_longest_ago(rewards, images, monkeypatch):
    monkeypatch.setattr(clip, "_REMEMBERED_PROMPTS", 3)
    encoder = rewards["clip"].encoder
    for prompts in (["a", "b", "c"], ["a", "d", "e"]):
        rewards["clip"].score(images, prompts)
    assert set(encoder._text_features) == {"a", "d", "e"}


def test_values_that_rounding_has_put_beside_the_range_are_scored(rewards):
    images = torch.tensor([-0.005, 1.005]).view(2, 1, 1, 1).expand(2, 3, 16, 16)
    assert rewards["redness"].score(images, ["a", "b"]).isfinite().all()


def test_the_largest_and_the_longest_images_that_are_scored():
    check_size(8192, 8192)
    check_size(16, 16 * 64)
    with pytest.raises(ValueError, match="8193 x 8192 pixels is too large .* 64 megapixels"):
        check_size(8192, 8193)
    for sides in ((16, 1025), (1025, 16)):
        with pytest.raises(ValueError, match="too long to be scored; .* 64 times the other"):
            check_size(*sides)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BLIND | {"imagereward"}])
def test_text_features_are_computed_once_for_each_prompt(rewards, images, name, monkeypatch):
    encoder, seen = rewards[name].encoder, []
    original = type(encoder).encode_text
    monkeypatch.setattr(
        type(encoder), "encode_text", lambda self, t: seen.append(len(t)) or original(self, t)
    )
    encoder._text_features.clear()
    for _ in range(3):
        rewards[name].score(images, ["a circle", "a square", "a circle"])
    assert seen == [2]


@pytest.mark.parametrize("name", NAMES)
def test_scores_under_inference_mode_do_not_spoil_later_gradients(rewards, images, name):
    """ComfyUI runs nodes in inference mode; ReNO takes gradients with the same reward."""
    with torch.inference_mode():
        rewards[name].score(images, ["a new prompt"] * 3)
    leaf = images.clone().requires_grad_(True)
    rewards[name].score(leaf, ["a new prompt"] * 3).sum().backward()
    assert leaf.grad.abs().sum() > 0


def test_an_ensemble_is_the_weighted_sum_and_its_loss_the_paper_s(rewards, images):
    weights = {"hps": 5.0, "imagereward": 1.0, "clip": 0.01, "pickscore": 0.05}
    ensemble = Ensemble({name: (rewards[name], weight) for name, weight in weights.items()})
    scores = ensemble.scores(images, PROMPTS)
    for name in weights:
        torch.testing.assert_close(scores[name], rewards[name].score(images, PROMPTS))
    total = sum(weight * scores[name] for name, weight in weights.items())
    torch.testing.assert_close(ensemble.score(images, PROMPTS), total)
    loss = sum(weight * rewards[name].loss(images, PROMPTS) for name, weight in weights.items())
    torch.testing.assert_close(ensemble.loss(images, PROMPTS), loss)


def test_rewards_on_the_same_weights_encode_the_images_once(rewards, images, monkeypatch):
    assert rewards["clip"].encoder is rewards["aesthetic"].encoder
    seen = []
    original = TransformersClip.encode_image
    monkeypatch.setattr(
        TransformersClip, "encode_image", lambda self, x: seen.append(self) or original(self, x)
    )
    ensemble = Ensemble({name: (rewards[name], 1.0) for name in ("clip", "aesthetic", "pickscore")})
    ensemble.score(images, PROMPTS)
    assert len(seen) == 2


def test_rewards_are_found_by_name():
    assert all(get_reward(cls.name) is cls for cls in REWARDS)
    with pytest.raises(ValueError, match="aesthetic, clip, hps, imagereward, pickscore"):
        get_reward("niceness")
    with pytest.raises(ValueError, match="at least one reward"):
        load_rewards({})
