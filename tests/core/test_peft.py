"""The same adapter in peft and here: files of ours opened there, files of peft opened here."""

import copy
import random
import re

import pytest
import torch

from hypernoise.hypernoise_core.adapter import load_adapter, save_adapter
from hypernoise.hypernoise_core.errors import AdapterError
from hypernoise.hypernoise_core.layer_pattern import LayerPattern
from hypernoise.hypernoise_core.peft_config import PeftConfig

peft = pytest.importorskip("peft")


def network_without_last_base(tiny):
    """A copy of the network whose last layer gives nothing by itself, so that peft gives f."""
    network = copy.deepcopy(tiny.network)
    last = network.get_submodule(tiny.family.last_layer)
    last.weight.data.zero_()
    last.bias.data.zero_()
    return network


def assert_computes(network, tiny, expected):
    with torch.no_grad():
        got = tiny.family.predict(network, tiny.noise, tiny.conditioning)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def delta_of(f, tiny):
    with torch.no_grad():
        return f(tiny.network, tiny.noise, tiny.conditioning)


def uneven_hypernetwork(tiny):
    """f with a layer of another alpha, which must not leak to layers whose name ends alike."""
    f = tiny.hypernetwork()
    f.branches[tiny.family.last_layer].alpha = 2.0
    f.branches[f.layer_names[1]].alpha = 5.0
    return f


def test_our_folder_opens_as_a_peft_model(tiny, tmp_path):
    f = uneven_hypernetwork(tiny)
    model = peft.PeftModel.from_pretrained(
        network_without_last_base(tiny), save_adapter(f, tmp_path / "f")
    )
    assert_computes(model.base_model.model, tiny, delta_of(f, tiny))


def test_our_file_opens_in_diffusers(tiny, tmp_path):
    f = uneven_hypernetwork(tiny)
    save_adapter(f, tmp_path / "f.safetensors")
    network = network_without_last_base(tiny)
    network.load_lora_adapter(tmp_path, weight_name="f.safetensors", prefix=None)
    assert_computes(network, tiny, delta_of(f, tiny))


def config_for_peft(**options):
    return peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=r"(.*\.)?(to_q|to_k|to_v|to_out\.0|linear_1|conv1|conv_in|proj_out|conv_out|proj)",
        alpha_pattern={"to_q": 3, "^proj_out": 2, "conv_out": 1},
        rank_pattern={"to_k": 2},
        init_lora_weights=False,
        **options,
    )


@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_peft_folder_computes_the_same_here(tiny, tmp_path, use_rslora):
    torch.manual_seed(0)
    model = peft.get_peft_model(
        network_without_last_base(tiny), config_for_peft(use_rslora=use_rslora)
    )
    model.save_pretrained(tmp_path)
    f = load_adapter(tmp_path)
    assert len(f.layer_names) > 4
    assert_computes(model.base_model.model, tiny, delta_of(f, tiny))


def test_an_adapter_trained_on_a_compiled_network_opens_here(tiny, tmp_path):
    """The wrapper is a part of all names in the file, and may be of those in the configuration."""
    torch.manual_seed(0)
    network = network_without_last_base(tiny)
    config = config_for_peft()
    config.alpha_pattern = {"to_q": 3, "^_orig_mod." + tiny.family.last_layer: 2}
    model = peft.get_peft_model(torch.compile(network), config)
    model.save_pretrained(tmp_path)
    f = load_adapter(tmp_path)
    assert f.branches[tiny.family.last_layer].alpha == 2
    assert_computes(network, tiny, delta_of(f, tiny))


def test_an_adapter_of_another_name_is_pointed_to_in_the_folder_that_peft_wrote(tiny, tmp_path):
    model = peft.get_peft_model(network_without_last_base(tiny), config_for_peft(), "hyper")
    model.save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="but hyper/adapter_model.safetensors: give the file"):
        load_adapter(tmp_path)
    assert_computes(model.base_model.model, tiny, delta_of(load_adapter(tmp_path / "hyper"), tiny))


def test_pefts_grouped_factors_on_depthwise_convolutions(tiny_sana, tmp_path):
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["conv_depth", "proj_out"],
        rank_pattern={"conv_depth": 160},
        alpha_pattern={"conv_depth": 20},
        init_lora_weights=False,
    )
    model = peft.get_peft_model(network_without_last_base(tiny_sana), config)
    model.save_pretrained(tmp_path)
    f = load_adapter(tmp_path)
    assert f.branches["transformer_blocks.0.ff.conv_depth"].up.shape == (80, 2, 1, 1)
    assert_computes(model.base_model.model, tiny_sana, delta_of(f, tiny_sana))


def test_an_adapter_saved_by_diffusers_opens_here(tiny, tmp_path):
    torch.manual_seed(0)
    network = network_without_last_base(tiny)
    network.add_adapter(config_for_peft(), adapter_name="hypernoise_adapter")
    network.save_lora_adapter(tmp_path, adapter_name="hypernoise_adapter")
    (path,) = tmp_path.glob("*.safetensors")
    assert_computes(network, tiny, delta_of(load_adapter(path), tiny))
    assert_computes(network, tiny, delta_of(load_adapter(tmp_path), tiny))


def test_the_folder_in_which_a_pipeline_of_diffusers_saves_loras_opens_here(tiny, tmp_path):
    torch.manual_seed(0)
    network, name = network_without_last_base(tiny), tiny.family.network_attribute
    model = peft.get_peft_model(network, config_for_peft())
    tiny.pipeline.save_lora_weights(
        tmp_path,
        **{f"{name}_lora_layers": peft.get_peft_model_state_dict(model)},
        **{f"{name}_lora_adapter_metadata": model.peft_config["default"].to_dict()},
    )
    assert_computes(network, tiny, delta_of(load_adapter(tmp_path), tiny))


PARTS = ["a", "b", "1", "_", r"\.", ".", r"\d", r"\w", "[ab]", "[^a]", "[0-9]", r"[\d.-]"]
REPEATS = ["", "", "", "*", "+", "?", "*?", "+?", "??"]


def made_up_pattern(rng: random.Random, depth: int = 0) -> str:
    """Any of the forms that are read, in any order."""

    def part() -> str:
        if rng.random() < 0.1:
            return rng.choice("^$")
        if rng.random() < 0.2 and depth < 3:
            opening, ending = rng.choice(["(", "(?:"]), rng.choice([")", ")?"])
            return opening + made_up_pattern(rng, depth + 1) + ending
        return rng.choice(PARTS) + rng.choice(REPEATS)

    sequences = [
        "".join(part() for _ in range(rng.randint(0, 4))) for _ in range(rng.randint(1, 3))
    ]
    return "|".join(sequences)


def test_patterns_find_the_layers_that_peft_finds():
    found = 0
    for seed in range(2000):
        rng = random.Random(seed)
        pattern = made_up_pattern(rng)
        for _ in range(5):
            name = "".join(rng.choices("ab1_.\n", (5, 5, 5, 5, 5, 1), k=rng.randint(0, 9)))
            expected = peft.utils.other.get_pattern_key([pattern], name) is pattern
            assert LayerPattern(pattern).matches(name) == expected, (pattern, name)
            found += expected
    assert 1000 < found < 9000


@pytest.mark.parametrize(
    "pattern",
    [
        r"transformer_blocks\.[0-9]+\.attn[12]\.(to_q|to_k)",
        r".*\.\d+\.(?:attn1|attn2)\.to_[kq]",
        r"^transformer_blocks\.0\.attn1\.to_q$",
        re.escape("transformer_blocks.0.attn1.to_q"),
        ".*" * 50 + "to_q",
        "(a?|.*)" * 40 + "to_q",
        "(" + "|".join(f"blocks.{i}.proj" for i in range(2000)) + "|to_q)",
    ],
)
def test_patterns_that_people_write_are_read_however_many_choices_they_have(pattern):
    names = ["transformer_blocks.0.attn1.to_q", *(f"blocks.{i}.other" for i in range(300))]
    values = {"r": 4, "lora_alpha": 4, "rank_pattern": {pattern: 8}}
    ranks = PeftConfig(values, dict(zip(names, names, strict=True))).ranks
    assert [name for name, rank in ranks.items() if rank == 8] == names[:1]
