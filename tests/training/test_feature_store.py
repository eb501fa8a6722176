"""Encoded prompts on disk: what comes back, crashes, several processes, damage, freed memory."""

import json
import weakref
from pathlib import Path

import open_clip
import psutil
import pytest
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from hypernoise.hypernoise_core.errors import RewardError, TensorFileError
from hypernoise.hypernoise_core.generate import encode_prompts, generate
from hypernoise.hypernoise_core.rewards import Ensemble, load_rewards
from hypernoise.hypernoise_core.rewards.aesthetic import Aesthetic
from hypernoise.hypernoise_core.rewards.clip import ClipTokenizer, OpenClip, TransformersClip
from hypernoise.hypernoise_core.rewards.clip_score import ClipScore
from hypernoise.hypernoise_core.rewards.head import ScoreHead
from hypernoise.hypernoise_core.rewards.hps import Hps
from hypernoise.hypernoise_core.rewards.images import Preprocess
from hypernoise.tests import warm
from hypernoise.training.feature_store import (
    FeatureStore,
    drop_text_encoders,
    embed_prompts,
    features_key,
    precompute_text_features,
)
from hypernoise.training.pipelines import load_pipeline

PROMPTS = [
    "a red circle",
    "two blue squares",
    "a white triangle above a green square",
    "a square",
    "four yellow circles",
    "a photo of a purple square and a red triangle",
    "a drawing of a green circle",
]
WORDS = [f"{'long ' * (i % 5)}prompt {i}" for i in range(23)]
PARTS = ("text_encoder*", "tokenizer*")


def encode(prompts: list[str]) -> dict[str, Tensor]:
    """As a text encoder does: L depends on the longest prompt; values tell the prompt."""
    longest = max(len(prompt) for prompt in prompts)
    tokens = torch.zeros(len(prompts), longest, 2, dtype=torch.bfloat16)
    mask = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(list(prompt.encode()))[:, None]
        mask[row, : len(prompt)] = 1
    size = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.float32)
    return {"prompt_embeds": tokens, "prompt_attention_mask": mask, "size": size}


def only_embeds(prompts: list[str]) -> dict[str, Tensor]:
    return {"prompt_embeds": encode(prompts)["prompt_embeds"]}


def refuse(prompts: list[str]) -> dict[str, Tensor]:
    raise AssertionError(f"{prompts} are encoded again")


def assert_rows_are_right(store: FeatureStore, prompts: list[str]) -> None:
    rows, expected = store.rows(prompts), encode(prompts)
    assert rows.keys() == expected.keys()
    for name, tensor in expected.items():
        assert rows[name].dtype == tensor.dtype
        assert torch.equal(rows[name], tensor), name


@pytest.mark.parametrize("shard_bytes", [1, 500, 1 << 28])
def test_rows_come_back_whatever_the_batch_and_the_shards(shard_bytes, tmp_path):
    store = FeatureStore(tmp_path, shard_bytes)
    assert store.missing(WORDS + WORDS) == WORDS
    store.add(WORDS, encode, 4)
    assert store.missing(WORDS) == []
    for opened in (store, FeatureStore(tmp_path)):
        for batch in (WORDS, WORDS[::-1], [WORDS[3]], [WORDS[4], WORDS[0], WORDS[4]]):
            assert_rows_are_right(opened, batch)


def test_without_a_mask_the_length_stays_that_of_the_encoder(tmp_path):
    store = FeatureStore(tmp_path)
    store.add(["a", "abc"], only_embeds, 2)
    assert store.rows(["a"])["prompt_embeds"].shape == (1, 3, 2)
    other = FeatureStore(tmp_path / "two shards", shard_bytes=1)
    other.add(["a", "abc"], only_embeds, 1)
    assert other.rows(["a"])["prompt_embeds"].shape == (1, 1, 2)
    rows = other.rows(["a", "abc"])["prompt_embeds"]
    assert rows[:, :, 0].tolist() == [[97, 0, 0], [97, 98, 99]]


def test_prompts_of_like_length_share_a_shard(tmp_path):
    store = FeatureStore(tmp_path, shard_bytes=1)
    store.add([WORDS[0], "a" * 200, WORDS[1], "b" * 200], only_embeds, 2)
    assert len(list(tmp_path.iterdir())) == 2
    assert store.rows([WORDS[0]])["prompt_embeds"].shape[1] < 20


def test_what_is_there_is_not_encoded_again(tmp_path):
    FeatureStore(tmp_path).add(WORDS[:9], encode, 4)
    FeatureStore(tmp_path).add(WORDS[:9], refuse, 4)
    seen = []
    store = FeatureStore(tmp_path)
    store.add(WORDS[:12], lambda batch: seen.extend(batch) or encode(batch), 4)
    assert sorted(seen) == sorted(WORDS[9:12])
    assert_rows_are_right(store, WORDS[:12])


def test_a_crash_keeps_the_finished_shards(tmp_path):
    def crash(prompts: list[str]) -> dict[str, Tensor]:
        if len(FeatureStore(tmp_path).missing(WORDS)) < 12:
            raise RuntimeError("out of power")
        return encode(prompts)

    with pytest.raises(RuntimeError, match="out of power"):
        FeatureStore(tmp_path, shard_bytes=1).add(WORDS, crash, 4)
    left = FeatureStore(tmp_path).missing(WORDS)
    assert 0 < len(left) < 12
    seen = []
    store = FeatureStore(tmp_path)
    store.add(WORDS, lambda batch: seen.extend(batch) or encode(batch), 4)
    assert sorted(seen) == sorted(left)
    assert_rows_are_right(store, WORDS)


def test_a_process_killed_while_writing_leaves_nothing_that_disturbs(tmp_path):
    FeatureStore(tmp_path).add(WORDS[:4], encode, 4)
    (shard,) = tmp_path.iterdir()
    (tmp_path / f".{shard.name}.x7.part").write_bytes(shard.read_bytes()[:100])
    assert_rows_are_right(FeatureStore(tmp_path), WORDS[:4])


_WORKER = """
import sys, torch
from pathlib import Path
from hypernoise.training.feature_store import FeatureStore
folder, index, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
def encode(prompts):
    print(*prompts, sep="\\n")
    return {"length": torch.tensor([float(len(p)) for p in prompts])}
prompts = [f"{'x' * (i % 7)} {i}" for i in range(60)]
store = FeatureStore(folder, shard_bytes=8)
store.add(prompts, encode, 3, process_index=index, num_processes=count)
"""


def test_processes_share_the_work_and_find_each_other_s_shards(tmp_path):
    prompts = [f"{'x' * (i % 7)} {i}" for i in range(60)]
    early = FeatureStore(tmp_path)
    running = [warm.start(_WORKER, tmp_path, index, 2) for index in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    shares = [process.stdout.splitlines() for process in running]
    assert sorted(sum(shares, [])) == sorted(prompts)
    assert {len(share) for share in shares} == {30}
    assert early.missing(prompts) == prompts
    early.refresh()
    assert early.missing(prompts) == []
    assert early.rows(prompts)["length"].tolist() == [len(prompt) for prompt in prompts]


def test_a_process_that_starts_late_does_its_own_share(tmp_path):
    """It sees fewer prompts missing, which must not move the shares."""
    for index in (0, 1, 2):
        store = FeatureStore(tmp_path, shard_bytes=1)
        store.add(WORDS, encode, 2, process_index=index, num_processes=3)
    assert_rows_are_right(FeatureStore(tmp_path), WORDS)


def test_rows_find_what_another_process_has_written_since(tmp_path):
    store = FeatureStore(tmp_path)
    FeatureStore(tmp_path).add(WORDS, encode, 4)
    assert_rows_are_right(store, WORDS)


def test_a_prompt_that_is_not_there_is_named(tmp_path):
    store = FeatureStore(tmp_path)
    store.add(WORDS, encode, 4)
    with pytest.raises(ValueError, match=r"1 prompts are not encoded in .* such as 'a zebra'"):
        store.rows([WORDS[0], "a zebra"])
    with pytest.raises(ValueError, match="at least one"):
        store.rows([])


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def scramble_header(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:8] + b"\xff" * 20 + content[28:])


def lose_a_prompt(path: Path) -> None:
    """A header of the same length that names one prompt less."""
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    prompts = json.loads(header["__metadata__"]["prompts"])[:-1]
    header["__metadata__"]["prompts"] = json.dumps(prompts)
    size = int.from_bytes(content[:8], "little")
    path.write_bytes(content[:8] + json.dumps(header).encode().ljust(size) + content[8 + size :])


def lose_the_metadata(path: Path) -> None:
    from safetensors.torch import load, save

    path.write_bytes(save(load(path.read_bytes())))


@pytest.mark.parametrize("damage", [cut_short, scramble_header, lose_a_prompt, lose_the_metadata])
def test_a_damaged_shard_is_named_with_the_remedy(damage, tmp_path):
    FeatureStore(tmp_path).add([prompt.ljust(40) for prompt in WORDS], encode, 30)
    (shard,) = tmp_path.iterdir()
    damage(shard)
    with pytest.raises(TensorFileError, match=rf"{shard.name} cannot be used; delete it"):
        FeatureStore(tmp_path)
    shard.unlink()
    assert FeatureStore(tmp_path).missing(WORDS) == WORDS


_CUT_BETWEEN = """
import sys, torch
from pathlib import Path
from hypernoise.training.feature_store import FeatureStore
folder = Path(sys.argv[1])
store = FeatureStore(folder)
store.add(["a", "b"], lambda prompts: {"x": torch.ones(len(prompts), 100_000)}, 2)
assert store.rows(["b"])["x"].sum() == 100_000
(shard,) = folder.iterdir()
with shard.open("r+b") as file:
    file.truncate(5000)
try:
    store.rows(["b"])
except ValueError as error:
    print(error)
"""


def test_a_shard_that_is_cut_short_while_it_is_in_use_is_named(tmp_path):
    """Reading a mapping beyond its file's end would kill the process without a word."""
    result = warm.run(_CUT_BETWEEN, tmp_path)
    (shard,) = tmp_path.iterdir()
    assert result.returncode == 0, result.stderr
    assert f"{shard} cannot be used; delete it, and its prompts are encoded" in result.stdout


def test_an_encoder_that_loses_rows_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"prompt_embeds \(2, 3, 2\) for 3 prompts"):
        FeatureStore(tmp_path).add(["a", "b", "abc"], lambda p: only_embeds(p[1:]), 3)
    assert list(tmp_path.iterdir()) == []


def test_rows_are_read_without_the_whole_shard(tmp_path):
    """A shard of 4 GB, most of it a hole in the file."""
    count, length, width = 1000, 512, 2048
    size = count * length * width * 4
    names = [f"prompt {i}" for i in range(count)]
    tensor = {"dtype": "F32", "shape": [count, length, width], "data_offsets": [0, size]}
    header = {"__metadata__": {"prompts": json.dumps(names)}, "prompt_embeds": tensor}
    text = json.dumps(header).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)
        file.seek(8 + len(text) + 700 * length * width * 4)
        file.write(b"\x00\x00\x80\x3f")  # 1.0
    if path.stat().st_blocks * 512 > size // 2:
        pytest.skip("this file system has no sparse files")
    before = psutil.Process().memory_info().rss
    rows = FeatureStore(tmp_path).rows(["prompt 3", "prompt 700"])["prompt_embeds"]
    assert psutil.Process().memory_info().rss - before < 200e6
    assert rows.shape == (2, length, width)
    assert rows[:, 0, 0].tolist() == [0.0, 1.0]


# The model's text encoders


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline("tiny-sprint")


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_store_gives_what_the_pipeline_gives(pipeline, batch_size, tmp_path):
    store = FeatureStore(tmp_path, shard_bytes=1)
    embed_prompts(pipeline, PROMPTS, store, batch_size=batch_size)
    for batch in (PROMPTS, PROMPTS[::-1], PROMPTS[3:4], [PROMPTS[5], PROMPTS[0], PROMPTS[5]]):
        rows, expected = store.rows(batch), encode_prompts(pipeline, batch)
        assert rows.keys() == expected.keys()
        for name in ("prompt_attention_mask", "guidance"):
            assert torch.equal(rows[name], expected[name])
        used = expected["prompt_attention_mask"].bool()
        assert rows["prompt_embeds"].shape == expected["prompt_embeds"].shape
        torch.testing.assert_close(
            rows["prompt_embeds"][used], expected["prompt_embeds"][used], rtol=0, atol=1e-6
        )
        seeds = range(len(batch))
        images, wanted = (
            generate(pipeline, batch, seeds=seeds, conditioning=conditioning).images
            for conditioning in (rows, expected)
        )
        # Batches are padded to other lengths, so that sums are rounded in another order.
        torch.testing.assert_close(images, wanted, rtol=0, atol=1e-5)


def test_overrides_reach_the_encoder(pipeline, tmp_path):
    store = FeatureStore(tmp_path)
    embed_prompts(pipeline, PROMPTS, store, batch_size=4, guidance_scale=1.0)
    expected = encode_prompts(pipeline, PROMPTS, guidance_scale=1.0)
    assert torch.equal(store.rows(PROMPTS)["guidance"], expected["guidance"])


def test_dropped_text_encoders_leave_the_memory_and_the_rest_works():
    pipeline = load_pipeline("tiny-sprint")
    conditioning = encode_prompts(pipeline, PROMPTS[:2])
    before = generate(pipeline, PROMPTS[:2], seeds=[1, 2], conditioning=conditioning).images
    encoder = weakref.ref(pipeline.text_encoder)
    weight = weakref.ref(next(pipeline.text_encoder.parameters()))
    drop_text_encoders(pipeline)
    assert encoder() is None
    assert weight() is None
    assert pipeline.text_encoder is None
    assert pipeline.tokenizer is None
    after = generate(pipeline, PROMPTS[:2], seeds=[1, 2], conditioning=conditioning).images
    assert torch.equal(before, after)


def test_the_key_tells_encoders_and_options_apart():
    options = {"dtype": "float32", "max_sequence_length": 300}
    key = features_key("a" * 16, options)
    assert key == features_key("a" * 16, dict(reversed(options.items())))
    others = [
        features_key("b" * 16, options),
        features_key("a" * 16, options | {"dtype": "bfloat16"}),
        features_key("a" * 16, options | {"max_sequence_length": 16}),
    ]
    assert len({key, *others}) == 4


# The rewards' text towers


def transformers_clip() -> TransformersClip:
    part = {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**part, "hidden_size": 16, "eos_token_id": 49407},
        vision_config={**part, "hidden_size": 32, "image_size": 32, "patch_size": 16},
        projection_dim=768,
    )
    return TransformersClip(CLIPModel(config), ClipTokenizer(), Preprocess(32))


def open_clip_clip() -> OpenClip:
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    model = open_clip.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text)
    return OpenClip(model, ClipTokenizer(), Preprocess(32))


ENCODERS = {"transformers": transformers_clip, "open_clip": open_clip_clip}


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture
def images() -> Tensor:
    return torch.rand(len(PROMPTS), 3, 40, 48, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ENCODERS)
def test_fixed_texts_keep_the_scores_and_free_the_text_tower(kind, images):
    encoder = ENCODERS[kind]()
    reward = (ClipScore if kind == "transformers" else Hps)(encoder)
    before = reward.score(images, PROMPTS)
    known = dict(zip(PROMPTS, encoder.text_features(PROMPTS), strict=True))
    tower = encoder.text_tower()
    weights = [weakref.ref(p) for p in reward.parameters()]
    whole, size = count(reward), sum(weight.numel() for weight in tower.values())
    names = [name for name, _ in encoder.model.named_parameters() if name not in tower]
    del tower
    encoder.fix_texts(lambda prompts: torch.stack([known[prompt] for prompt in prompts]))
    assert count(reward) == whole - size < 0.2 * whole
    assert [name for name, _ in encoder.model.named_parameters()] == names
    assert all(name.startswith(("vis", "logit_scale")) for name in names)
    assert sum(weight() is not None for weight in weights) == len(names)
    assert torch.equal(reward.score(images, PROMPTS), before)
    leaf = images.clone().requires_grad_(True)
    reward.score(leaf, PROMPTS).sum().backward()
    assert leaf.grad.abs().sum() > 0
    assert reward.prompt_warnings(["a red circle " * 40]) != []
    reward.to(torch.float32)
    with pytest.raises(ValueError, match="no text tower any more"):
        encoder.text_tower()


def ensemble() -> Ensemble:
    """Two rewards on one CLIP, and one on another."""
    torch.manual_seed(0)
    shared = transformers_clip()
    return Ensemble(
        {
            "clip": (ClipScore(shared), 0.01),
            "aesthetic": (Aesthetic(shared, ScoreHead(768)), 1.0),
            "hps": (Hps(open_clip_clip()), 5.0),
        }
    )


def test_text_features_of_an_ensemble_are_computed_once_and_kept(images, tmp_path, monkeypatch):
    seen = []
    for cls in (TransformersClip, OpenClip):
        original = cls.encode_text
        monkeypatch.setattr(
            cls,
            "encode_text",
            lambda self, t, original=original: seen.append(len(t)) or original(self, t),
        )
    rewards = ensemble()
    before = rewards.scores(images, PROMPTS)
    size = count(rewards)
    assert seen == [len(PROMPTS)] * 2
    precompute_text_features(rewards, [*PROMPTS, PROMPTS[0], "another"], tmp_path)
    assert seen == [len(PROMPTS)] * 2 + [1] * 2
    assert len(list(tmp_path.iterdir())) == 2
    assert count(rewards) < 0.5 * size
    after = rewards.scores(images, PROMPTS)
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name])
    with pytest.raises(RewardError, match="not encoded in .* such as 'a zebra'"):
        rewards.scores(images[:1], ["a zebra"])

    again = ensemble()
    precompute_text_features(again, PROMPTS, tmp_path)
    assert len(seen) == 4, "the same weights are found again"
    for name, scores in again.scores(images, PROMPTS).items():
        assert torch.equal(before[name], scores)


def test_other_weights_get_another_folder(tmp_path):
    for change in (0.0, 0.5):
        rewards = ensemble()
        with torch.no_grad():
            rewards.members["hps"].encoder.model.text_projection.view(-1)[0] += change
        precompute_text_features(rewards, PROMPTS, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_the_text_side_is_precomputed_in_shares(images, tmp_path):
    parts = [ensemble(), ensemble()]
    expected = ensemble().scores(images, PROMPTS)
    for index, rewards in enumerate(parts):
        precompute_text_features(rewards, PROMPTS, tmp_path, process_index=index, num_processes=2)
    for rewards in parts:
        for name, scores in rewards.scores(images, PROMPTS).items():
            torch.testing.assert_close(scores, expected[name])


def test_the_embedded_reward_scores_without_its_text_tower(images, tmp_path):
    rewards = load_rewards({"tiny-preference": 1.0, "redness": 1.0})
    before, size = rewards.score(images, PROMPTS), count(rewards)
    precompute_text_features(rewards, PROMPTS, tmp_path)
    assert count(rewards) < size
    assert torch.equal(rewards.score(images, PROMPTS), before)
