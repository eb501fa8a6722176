"""Mutated files and settings: each is read, or refused in one of the ways that are documented."""

import json
import random
import shutil
import string
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from hypernoise.hypernoise_core.adapter import load_adapter, save_adapter
from hypernoise.hypernoise_core.errors import AdapterError
from hypernoise.hypernoise_core.hypernetwork import NoiseHypernetwork
from hypernoise.hypernoise_core.lora_branch import LoraBranch
from hypernoise.hypernoise_core.metadata import AdapterMetadata
from hypernoise.hypernoise_core.peft_config import CONFIG_NAME, PeftConfig
from hypernoise.tests.trust.generated import examples
from hypernoise.tests.trust.mutation import mutate_bytes, mutate_safetensors, mutate_tree, to_json
from hypernoise.training.config import TrainingConfig
from hypernoise.training.config_files import read_toml
from hypernoise.training.prompt_files import read_file
from hypernoise.training.settings import load_settings

FOUND = Path(__file__).parent / "found"
"""Inputs that once led to something else, named after what they did."""
WEIGHTS = "adapter_model.safetensors"
PROMPTS = ["a red circle", "zwei grüne Dreiecke, groß", "a cat, 'quoted'", "円と四角"]


def new_adapter(rank: int = 2) -> NoiseHypernetwork:
    generator = torch.Generator().manual_seed(0)

    def weights(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    branches = {
        "patch_embed.proj": LoraBranch(weights(rank, 4, 1, 1), weights(6, rank, 1, 1), 4.0),
        "transformer_blocks.0.attn1.to_q": LoraBranch(weights(rank, 6), weights(6, rank), 8.0),
        "proj_out": LoraBranch(weights(rank, 6), weights(4, rank), 4.0),
    }
    metadata = AdapterMetadata(
        family="sana_sprint",
        rank=rank,
        alpha=4.0,
        last_layer="proj_out",
        rewards={"redness": 1.0},
        training_steps=3,
    )
    return NoiseHypernetwork(branches, metadata)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> dict[str, bytes]:
    """Good files by their suffix; `.peft` is the configuration of a folder."""
    folder = tmp_path_factory.mktemp("seeds")
    adapter = new_adapter()
    save_adapter(adapter, folder / "a.safetensors")
    save_adapter(adapter, folder / "peft")
    weights = {
        f"base_model.model.{name}.lora_{factor}.weight": tensor.detach()
        for name, branch in adapter.branches.items()
        for factor, tensor in (("A", branch.down), ("B", branch.up))
    }
    torch.save(weights, folder / "a.bin")
    torch.save(weights, folder / "old.bin", _use_new_zipfile_serialization=False)
    return {
        ".safetensors": (folder / "a.safetensors").read_bytes(),
        ".bin": (folder / "a.bin").read_bytes(),
        "foreign": save(weights),  # without our header
        "old.bin": (folder / "old.bin").read_bytes(),
        ".peft": (folder / "peft" / CONFIG_NAME).read_bytes(),
        ".txt": "\n".join(PROMPTS).encode(),
        ".json": json.dumps([{"prompt": prompt} for prompt in PROMPTS]).encode(),
        ".jsonl": "\n".join(json.dumps({"prompt": prompt}) for prompt in PROMPTS).encode(),
        ".csv": b"id,prompt\n" + "\n".join(f'{i},"{p}"' for i, p in enumerate(PROMPTS)).encode(),
    }


def check_adapter(path: Path) -> str:
    """Reads it; what is read must be sound and, tried with a part, the same after it was saved."""
    try:
        adapter = load_adapter(path)
    except AdapterError as error:
        assert str(path.parent) in str(error)
        return "refused"
    for name, branch in adapter.branches.items():
        assert name.isprintable() and branch.rank >= 1 and 0 < branch.scale < float("inf")
        assert all(torch.isfinite(parameter).all() for parameter in branch.parameters())
    if zlib.crc32(path.read_bytes()) % 8:
        return "read"
    again = path.parent / "again.safetensors"
    save_adapter(adapter, again)
    saved = load_adapter(again)
    assert saved.metadata == adapter.metadata
    for name, branch in adapter.branches.items():
        assert torch.equal(saved.branches[name].up, branch.up)
        assert saved.branches[name].scale == branch.scale
    return "read"


def run(
    count: int, check: Callable[[Path], str], path: Path, mutate: Callable[[random.Random], bytes]
) -> dict[str, int]:
    """Checks so many mutants; a failure names the seed and leaves the file."""
    outcomes: dict[str, int] = {}
    for seed in range(count):
        path.write_bytes(mutate(random.Random(seed)))
        try:
            outcome = check(path)
        except BaseException as error:
            raise AssertionError(f"mutant {seed}, which lies at {path}: {error!r}") from error
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return outcomes


def report(tally, name: str, outcomes: dict[str, int]) -> None:
    for outcome, times in outcomes.items():
        tally(name).count(outcome, times)
    assert outcomes.get("refused"), "no mutant was broken"


def test_mutated_adapters(seeds, tmp_path, scale, tally):
    content = seeds[".safetensors"]
    outcomes = run(
        scale(6_000, 30_000, 500_000),
        check_adapter,
        tmp_path / "a.safetensors",
        lambda rng: mutate_safetensors(content, rng),
    )
    report(tally, "mutated .safetensors", outcomes)


@pytest.mark.parametrize("kind", [".bin", "old.bin"])
def test_mutated_pickled_adapters(seeds, tmp_path, scale, tally, kind):
    (tmp_path / CONFIG_NAME).write_bytes(seeds[".peft"])
    outcomes = run(
        scale(2_000, 10_000, 100_000),
        check_adapter,
        tmp_path / "adapter_model.bin",
        lambda rng: mutate_bytes(seeds[kind], rng),
    )
    report(tally, f"mutated {'.bin' if kind == '.bin' else '.bin of old versions'}", outcomes)


def test_mutated_configurations_of_adapters(seeds, tmp_path, scale, tally):
    (tmp_path / WEIGHTS).write_bytes(seeds["foreign"])
    tree = json.loads(seeds[".peft"])
    tree["rank_pattern"] = {"proj_out": 2, r".*\.to_q": 2}

    def mutate(rng: random.Random) -> bytes:
        if rng.random() < 0.2:
            return mutate_bytes(seeds[".peft"], rng)
        return to_json(mutate_tree(tree, rng), rng).encode("utf-8", "surrogatepass")

    outcomes = run(
        scale(3_000, 12_000, 200_000),
        lambda path: check_adapter(path.with_name(WEIGHTS)),
        tmp_path / CONFIG_NAME,
        mutate,
    )
    report(tally, "mutated adapter_config.json", outcomes)


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".json", ".jsonl"])
def test_mutated_prompt_files(seeds, tmp_path, scale, tally, suffix):
    def check(path: Path) -> str:
        try:
            prompts = read_file(path)
        except ValueError as error:
            assert str(path) in str(error)
            return "refused"
        assert all(prompt == prompt.strip() and prompt for prompt in prompts)
        "".join(prompts).encode()
        return "read"

    def mutate(rng: random.Random) -> bytes:
        if suffix == ".json" and rng.random() < 0.5:
            tree = mutate_tree(json.loads(seeds[suffix]), rng)
            return to_json(tree, rng).encode("utf-8", "surrogatepass")
        return mutate_bytes(seeds[suffix], rng)

    count = scale(2_000, 10_000, 100_000)
    report(tally, f"mutated prompts{suffix}", run(count, check, tmp_path / f"p{suffix}", mutate))


@pytest.mark.parametrize(
    ("what", "counts", "read"),
    [
        ("mutated TOML", (6_000, 10_000, 100_000), read_toml),
        # Each of these takes some 20 ms.
        ("mutated training config", (250, 1_000, 10_000), partial(load_settings, TrainingConfig)),
    ],
)
def test_mutated_training_configurations(tmp_path, scale, tally, what, counts, read):
    content = (Path(__file__).parents[2] / "training/configs/tiny-sprint.toml").read_bytes()

    def check(path: Path) -> str:
        try:
            read(path)
        except ValueError:
            return "refused"
        return "read"

    outcomes = run(
        scale(*counts), check, tmp_path / "c.toml", lambda rng: mutate_bytes(content, rng)
    )
    report(tally, what, outcomes)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
OTHER_FIELDS = (
    "use_rslora",
    "use_dora",
    "bias",
    "peft_type",
    "base_model_name_or_path",
    "init_lora_weights",
    "modules_to_save",
)
PATTERN = st.text(alphabet=string.ascii_lowercase + r".*+?()[]{}|\^$0123456789_", max_size=12)
NAMES = ["proj_out", "transformer_blocks.0.attn1.to_q", "patch_embed.proj"]


def test_made_up_configurations_of_adapters(scale, tally):
    line = tally("made-up adapter_config.json")

    @examples(scale(200, 1_000, 20_000))
    @given(
        st.dictionaries(st.sampled_from(OTHER_FIELDS), JSON, max_size=1),
        st.dictionaries(st.sampled_from(["r", "lora_alpha"]), JSON, max_size=1),
        st.dictionaries(PATTERN, st.integers(-1, 30), max_size=2) | JSON,
        st.dictionaries(PATTERN, st.floats(-1, 30), max_size=2) | JSON,
    )
    def check(others, numbers, ranks, alphas):
        values = {"r": 2, "lora_alpha": 2.0, **numbers, **others}
        try:
            patterns = {"rank_pattern": ranks, "alpha_pattern": alphas}
            config = PeftConfig(values | patterns, dict(zip(NAMES, NAMES, strict=True)))
        except AdapterError:
            line.count("refused")
            return
        assert set(config.ranks) == set(config.alphas) == set(NAMES)
        assert all(rank >= 1 for rank in config.ranks.values())
        assert all(0 < alpha < float("inf") for alpha in config.alphas.values())
        line.count("read")

    check()


def test_made_up_metadata(scale, tally):
    line = tally("made-up metadata in a header")
    value = st.text(max_size=20) | st.integers().map(str) | st.floats().map(str) | JSON.map(str)
    good = new_adapter().metadata.to_header()
    names = st.sampled_from([*good, "replaces_noise", "base_model"])

    @examples(scale(200, 1_000, 20_000))
    @given(st.dictionaries(names, value, max_size=2))
    def check(entries):
        header = good | entries
        try:
            metadata = AdapterMetadata.from_header(header)
        except AdapterError:
            line.count("refused")
            return
        assert AdapterMetadata.from_header(metadata.to_header()) == metadata
        line.count("read")

    check()


@pytest.mark.parametrize("path", sorted(FOUND.glob("*")), ids=lambda path: path.name)
def test_what_was_found_once(path, seeds, tmp_path):
    """An adapter, or a configuration that is put beside good weights."""
    if path.suffix == ".json":
        (tmp_path / WEIGHTS).write_bytes(seeds["foreign"])
        path = Path(shutil.copy(path, tmp_path / CONFIG_NAME)).with_name(WEIGHTS)
    with pytest.raises(AdapterError):
        load_adapter(path)
