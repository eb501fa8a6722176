"""Adapters on disk: every form that is read, what is refused, and what is written."""

import dataclasses
import json
import os
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hypernoise.hypernoise_core.adapter import load_adapter, save_adapter
from hypernoise.hypernoise_core.errors import AdapterError
from hypernoise.hypernoise_core.tensor_file import read_tensors

CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none"}


def tensors_of(f, prefix: str = "", adapter: str = "") -> dict[str, torch.Tensor]:
    name = f".{adapter}" if adapter else ""
    return {
        f"{prefix}{layer}.lora_{factor}{name}.weight": weight.detach().clone()
        for layer, branch in f.branches.items()
        for factor, weight in (("A", branch.down), ("B", branch.up))
    }


def write_folder(folder, tensors, config=CONFIG, weights="adapter_model.safetensors"):
    folder.mkdir(exist_ok=True)
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    if weights.endswith(".bin"):
        torch.save(tensors, folder / weights)
    else:
        save_file(tensors, folder / weights)
    return folder


def assert_same(got, expected):
    assert set(got.layer_names) == set(expected.layer_names)
    for name, branch in expected.branches.items():
        assert torch.equal(got.branches[name].down, branch.down)
        assert torch.equal(got.branches[name].up, branch.up)
        assert got.branches[name].scale == branch.scale


def test_the_same_adapter_always_gives_the_same_bytes(tiny, tmp_path):
    """So that a digest of the file tells adapters apart."""
    f = tiny.hypernetwork()
    f.metadata = dataclasses.replace(f.metadata, base_model="some/\u00e4", training_steps=12)
    files = [save_adapter(f, tmp_path / f"{i}.safetensors") for i in range(4)]
    files.append(save_adapter(load_adapter(files[0]), tmp_path / "again.safetensors"))
    assert len({file.read_bytes() for file in files}) == 1


def test_a_configuration_that_was_saved_with_a_byte_order_mark_is_read(tiny, tmp_path):
    f = tiny.hypernetwork()
    folder = write_folder(tmp_path / "folder", tensors_of(f))
    config = folder / "adapter_config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes().replace(b", ", b",\r\n"))
    assert_same(load_adapter(folder), f)


@pytest.mark.parametrize("name", ["f.safetensors", "folder"])
@pytest.mark.parametrize(
    "facts",
    [
        {"base_model": "some/model", "training_steps": 12, "rewards": {"a": 1.0, "b": 0.25}},
        {"training_steps": 0, "replaces_noise": True, "alpha": 1 / 3},
    ],
    ids=["trained", "at its start"],
)
def test_saving_and_loading_is_identity(tiny, tmp_path, name, facts):
    f = tiny.hypernetwork()
    f.metadata = dataclasses.replace(f.metadata, **facts)
    f.branches[f.layer_names[0]].alpha = 3.7  # layers may have alphas of their own
    loaded = load_adapter(save_adapter(f, tmp_path / name))
    assert_same(loaded, f)
    assert loaded.metadata == f.metadata
    assert loaded.family is f.family
    with torch.no_grad():
        expected = f(tiny.network, tiny.noise, tiny.conditioning)
        assert torch.equal(loaded(tiny.network, tiny.noise, tiny.conditioning), expected)


def test_weights_in_any_order_of_memory_are_saved(tiny_sana, tmp_path):
    f = tiny_sana.hypernetwork()
    for branch in f.branches.values():
        branch.down.data = branch.down.data.transpose(0, 1).contiguous().transpose(0, 1)
    assert_same(load_adapter(save_adapter(f, tmp_path / "f.safetensors")), f)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_of_the_weights_is_kept(tiny_sana, tmp_path, dtype):
    f = tiny_sana.hypernetwork().to(dtype)
    assert_same(load_adapter(save_adapter(f, tmp_path / "f.safetensors")), f)


def test_the_header_tells_what_the_weights_do_not(tiny_sana, tmp_path):
    path = save_adapter(tiny_sana.hypernetwork(), tmp_path / "f.safetensors")
    with safe_open(path, "pt") as file:
        header = file.metadata()
    told = {key: header[key] for key in ("family", "rank", "alpha", "last_layer")}
    assert told == {"family": "sana_sprint", "rank": "4", "alpha": "8.0", "last_layer": "proj_out"}
    assert header["format_version"] == "1"


@pytest.mark.parametrize(
    "fact", [{"base_model": "a\x1b[2J"}, {"last_layer": "a\u202eb"}, {"rewards": {"\x07": 1.0}}]
)
def test_names_that_would_steer_a_terminal_are_refused(tiny_sana, fact):
    with pytest.raises(AdapterError, match="a name must be printable text, got '"):
        dataclasses.replace(tiny_sana.hypernetwork().metadata, **fact)


PREFIXES = [
    "",
    "transformer.",
    "unet.",
    "base_model.model.",
    "base_model.model.transformer.",
    "diffusion_model.",
    "module.",
    "base_model.model._orig_mod.",
    "_orig_mod.module.base_model.model.",
    "module._fsdp_wrapped_module.transformer.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("adapter", ["", "hypernoise_adapter", "default"])
@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "adapter_model.bin"])
def test_every_prefix_and_adapter_name_is_read(tiny_sana, tmp_path, prefix, adapter, weights):
    f = tiny_sana.hypernetwork()
    folder = write_folder(tmp_path / "f", tensors_of(f, prefix, adapter), weights=weights)
    loaded = load_adapter(folder)
    assert_same(loaded, f)
    assert loaded.family.name == "sana_sprint"
    assert_same(load_adapter(folder / weights), f)


def test_wrappers_anywhere_in_a_name_are_passed_over(tiny_sana, tmp_path):
    """As FSDP and compiled blocks write them."""

    def wrapped(key: str) -> str:
        key = key.replace("blocks.0.", "blocks.0._orig_mod._fsdp_wrapped_module.")
        key = key.replace(".lora_", "._checkpoint_wrapped_module.lora_")
        return key.replace(".weight", "._fsdp_wrapped_module.weight")

    f = tiny_sana.hypernetwork()
    tensors = tensors_of(f, "_fsdp_wrapped_module.base_model.model._orig_mod.", "default")
    tensors = {wrapped(key): tensor for key, tensor in tensors.items()}
    assert_same(load_adapter(write_folder(tmp_path / "f", tensors)), f)


KOHYA, BLACK_FOREST, STABILITY = "kohya's", "Black Forest Labs'", "Stability AI's"


@pytest.mark.parametrize(
    ("key", "whose"),
    [
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_{}.weight", KOHYA),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_{}.weight", KOHYA),
        ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_{}", KOHYA),
        ("lycoris_transformer_blocks_0_attn_to_q.lokr_w1_{}", KOHYA),
        ("diffusion_model.double_blocks.0.img_attn.qkv.lora_{}.weight", BLACK_FOREST),
        ("diffusion_model.img_in.lora_{}.weight", BLACK_FOREST),
        ("diffusion_model.input_blocks.1.1.proj_in.lora_{}.weight", STABILITY),
    ],
)
def test_names_of_others_are_named_for_what_they_are(tmp_path, key, whose):
    path = tmp_path / "other.safetensors"
    save_file({key.format(part): torch.ones(4, 4) for part in ("down", "up")}, path)
    with pytest.raises(AdapterError, match=f"names are {whose}.*Load LoRA"):
        load_adapter(path, alpha=4)


def test_layers_of_no_family_are_answered_with_the_known_ones(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({f"blocks.0.q.lora_{x}.weight": torch.ones(4, 4) for x in ("A", "B")}, path)
    with pytest.raises(AdapterError, match=r"\(SANA-Sprint, FLUX, SD-Turbo\) has .* blocks.0.q$"):
        load_adapter(path, alpha=4)


def test_the_family_is_told_by_the_layers(tiny, tmp_path):
    folder = write_folder(tmp_path / "f", tensors_of(tiny.hypernetwork()))
    assert load_adapter(folder).family is tiny.family
    other = "flux" if tiny.family.name != "flux" else "sana_sprint"
    with pytest.raises(AdapterError, match=f"looks like {tiny.family.name}"):
        load_adapter(folder, family=other)


def test_a_stated_family_is_not_overruled(tiny_sana, tmp_path):
    path = save_adapter(tiny_sana.hypernetwork(), tmp_path / "f.safetensors")
    with pytest.raises(AdapterError, match="is for sana_sprint, not for flux"):
        load_adapter(path, family="flux")


def test_an_unknown_family_answers_with_the_known_ones(tiny_sana, tmp_path):
    folder = write_folder(tmp_path / "f", tensors_of(tiny_sana.hypernetwork()))
    with pytest.raises(ValueError, match="choose from sana_sprint, flux, sd_turbo"):
        load_adapter(folder, family="fluks")


def test_rank_and_alpha_patterns_follow_pefts_rules(tiny_sana, tmp_path):
    f = tiny_sana.hypernetwork()
    config = CONFIG | {
        "r": 99,
        "rank_pattern": {".*": 4},
        "alpha_pattern": {"^proj_out": 2, "attn1.to_q": 3, r"transformer_blocks\.1\..*": 5},
    }
    branches = load_adapter(write_folder(tmp_path / "f", tensors_of(f), config)).branches
    assert branches["proj_out"].scale == 2 / 4
    assert branches["patch_embed.proj"].scale == 8 / 4
    assert branches["transformer_blocks.0.attn1.to_q"].scale == 3 / 4
    assert branches["transformer_blocks.1.attn1.to_q"].scale == 3 / 4  # the first match counts
    assert branches["transformer_blocks.1.attn1.to_k"].scale == 5 / 4


def test_a_pattern_is_for_whole_names_or_their_ends(tiny_sana, tmp_path):
    """Neither for a part in the middle of one nor for the beginning."""
    alphas = {"attn1": 2, "transformer_blocks": 3, "to_": 4, "q": 5, r"blocks\.0\.attn1\.to_q": 6}
    config = CONFIG | {"alpha_pattern": alphas | {"proj": 7}}
    folder = write_folder(tmp_path / "f", tensors_of(tiny_sana.hypernetwork()), config)
    branches = load_adapter(folder).branches
    assert branches.pop("patch_embed.proj").alpha == 7
    assert {branch.alpha for branch in branches.values()} == {8}


@pytest.mark.parametrize("prefix", ["base_model.model._orig_mod.", "module.transformer."])
@pytest.mark.parametrize("anchor", ["", "^"])
def test_patterns_may_be_for_the_names_of_the_file(tiny_sana, tmp_path, prefix, anchor):
    written = prefix.removeprefix("base_model.model.")
    alphas = {f"{anchor}{written}proj_out": 2, "^patch_embed": 3}
    tensors = tensors_of(tiny_sana.hypernetwork(), prefix)
    config = CONFIG | {"alpha_pattern": alphas | {f"{anchor}{written}patch_embed.proj": 5}}
    branches = load_adapter(write_folder(tmp_path / "f", tensors, config)).branches
    assert branches["proj_out"].alpha == 2
    assert branches["patch_embed.proj"].alpha == 5
    assert branches["transformer_blocks.0.attn1.to_q"].alpha == 8


def test_rslora_divides_by_the_root_of_the_rank(tiny_sana, tmp_path):
    config = CONFIG | {"use_rslora": True}
    folder = write_folder(tmp_path / "f", tensors_of(tiny_sana.hypernetwork()), config)
    assert load_adapter(folder).branches["proj_out"].scale == 8 / 2


def test_ranks_must_be_those_of_the_configuration(tiny_sana, tmp_path):
    config = CONFIG | {"r": 8}
    folder = write_folder(tmp_path / "f", tensors_of(tiny_sana.hypernetwork()), config)
    with pytest.raises(AdapterError, match=r"patch_embed.proj \(got 4, expected 8\)"):
        load_adapter(folder)


@pytest.mark.parametrize(
    "field",
    [
        {"use_dora": True},
        {"lora_bias": True},
        {"bias": "all"},
        {"modules_to_save": ["proj_out"]},
        {"layer_replication": [[0, 2]]},
        {"use_qalora": True},
        {"init_lora_weights": "pissa"},
        {"peft_type": "LOHA"},
    ],
    ids=lambda field: next(iter(field)),
)
def test_options_beyond_plain_lora_are_refused_by_name(tiny_sana, tmp_path, field):
    folder = write_folder(tmp_path / "f", tensors_of(tiny_sana.hypernetwork()), CONFIG | field)
    with pytest.raises(AdapterError, match=rf"adapter_config.json.*{next(iter(field))}="):
        load_adapter(folder)


def test_a_foreign_file_without_alpha_is_refused_until_it_is_given(tiny_sana, tmp_path):
    f = tiny_sana.hypernetwork()
    path = tmp_path / "foreign.safetensors"
    save_file(tensors_of(f, "transformer."), path)
    with pytest.raises(
        AdapterError, match=r"rank 4; .*adapter_config.json next to it.*export .*--alpha"
    ):
        load_adapter(path)
    assert_same(load_adapter(path, alpha=8), f)
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    assert_same(load_adapter(path), f)
    with pytest.raises(AdapterError, match="alpha 3 was given, but the file says 8: leave it out"):
        load_adapter(path, alpha=3)


def test_a_given_alpha_must_be_that_of_every_layer(tiny_sana, tmp_path):
    config = CONFIG | {"alpha_pattern": {"proj_out": 2}}
    folder = write_folder(tmp_path / "f", tensors_of(tiny_sana.hypernetwork()), config)
    with pytest.raises(AdapterError, match="alpha 8 was given, but the file says 2, 8: leave it"):
        load_adapter(folder, alpha=8)


def test_the_metadata_of_a_foreign_folder_is_what_most_layers_and_the_configuration_say(
    tiny_sana, tmp_path
):
    f = tiny_sana.hypernetwork()
    first = load_adapter(write_folder(tmp_path / "f", tensors_of(f))).layer_names[0]
    config = CONFIG | {"alpha_pattern": {"^" + first: 2}}
    config["base_model_name_or_path"] = "some/model"
    metadata = load_adapter(write_folder(tmp_path / "f", tensors_of(f), config)).metadata
    assert (metadata.rank, metadata.alpha, metadata.base_model) == (4, 8.0, "some/model")


@pytest.mark.parametrize("alpha", [0, -1.0, float("nan"), float("inf")])
def test_an_alpha_that_is_no_positive_number_is_refused(tiny_sana, tmp_path, alpha):
    path = tmp_path / "foreign.safetensors"
    save_file(tensors_of(tiny_sana.hypernetwork()), path)
    with pytest.raises(AdapterError, match="alpha must be a positive number"):
        load_adapter(path, alpha=alpha)


def test_the_given_alpha_is_for_the_layers_that_do_not_tell_theirs(tiny_sana, tmp_path):
    path = tmp_path / "foreign.safetensors"
    save_file(tensors_of(tiny_sana.hypernetwork()) | {"proj_out.alpha": torch.tensor(2.0)}, path)
    branches = load_adapter(path, alpha=8).branches
    assert branches["proj_out"].alpha == 2
    assert {b.alpha for name, b in branches.items() if name != "proj_out"} == {8}


def test_a_folder_without_configuration_needs_alpha(tiny_sana, tmp_path):
    folder = write_folder(tmp_path / "f", tensors_of(tiny_sana.hypernetwork()), config=None)
    with pytest.raises(AdapterError, match="adapter_config.json"):
        load_adapter(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.int32])
def test_alpha_of_each_layer_from_its_own_key(tiny_sana, tmp_path, dtype):
    f = tiny_sana.hypernetwork()
    alphas = {
        f"{name}.alpha": torch.tensor(i, dtype=dtype) for i, name in enumerate(f.layer_names, 1)
    }
    path = tmp_path / "foreign.safetensors"
    save_file(tensors_of(f) | alphas, path)
    loaded = load_adapter(path)
    assert [loaded.branches[n].scale for n in f.layer_names] == [
        i / 4 for i in range(1, len(alphas) + 1)
    ]


@pytest.mark.parametrize("alpha", [7.0, 9.0])
@pytest.mark.parametrize("told_by", ["configuration", "header"])
def test_alphas_that_contradict_each_other_are_refused(tiny_sana, tmp_path, told_by, alpha):
    f = tiny_sana.hypernetwork()
    own = {"proj_out.alpha": torch.tensor(alpha), "patch_embed.proj.alpha": torch.tensor(8.0)}
    if told_by == "configuration":
        path = write_folder(tmp_path / "f", tensors_of(f) | own)
    else:
        path = save_adapter(f, tmp_path / "f.safetensors")
        with safe_open(path, "pt") as file:
            header = file.metadata()
        save_file(load_file(path) | own, path, header)
    with pytest.raises(AdapterError, match=rf"alpha in the weights differs from .*{told_by}.*"):
        load_adapter(path)


def test_alphas_that_say_the_same_twice_are_read(tiny_sana, tmp_path):
    f = tiny_sana.hypernetwork()
    own = {f"{name}.alpha": torch.tensor(8.0) for name in f.layer_names}
    assert_same(load_adapter(write_folder(tmp_path / "f", tensors_of(f) | own)), f)


@pytest.mark.parametrize(
    "key",
    [
        "transformer_blocks.0.attn1.to_q.lora_magnitude_vector",
        "transformer_blocks.0.attn1.to_q.weight",
        "patch_embed.proj.lora_B.bias",
        "text_encoder.layers.0.q_proj.lora_A.weight",
    ],
)
def test_a_key_without_use_is_named(tiny_sana, tmp_path, key):
    tensors = tensors_of(tiny_sana.hypernetwork()) | {key: torch.zeros(4, 16)}
    with pytest.raises(AdapterError, match=key.removesuffix(".lora_A.weight")):
        load_adapter(write_folder(tmp_path / "f", tensors))


def test_a_layer_of_another_network_is_named(tiny_sana, tmp_path):
    extra = {f"text_encoder.layers.0.q_proj.lora_{x}.weight": torch.zeros(4, 4) for x in ("A", "B")}
    folder = write_folder(tmp_path / "f", tensors_of(tiny_sana.hypernetwork()) | extra)
    with pytest.raises(AdapterError, match="do not belong to sana_sprint: text_encoder.layers.0"):
        load_adapter(folder)


def test_a_missing_factor_is_named(tiny_sana, tmp_path):
    tensors = tensors_of(tiny_sana.hypernetwork())
    del tensors["proj_out.lora_B.weight"]
    with pytest.raises(AdapterError, match="missing for proj_out"):
        load_adapter(write_folder(tmp_path / "f", tensors))


@pytest.mark.parametrize("factor", ["A", "B"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_factor_that_holds_no_numbers_is_named(tiny_sana, tmp_path, factor, value):
    tensors = tensors_of(tiny_sana.hypernetwork())
    tensors[f"proj_out.lora_{factor}.weight"].view(-1)[3] = value
    with pytest.raises(AdapterError, match=r"NaN or infinite.*: proj_out \(1 of \d+\); use the"):
        load_adapter(write_folder(tmp_path / "f", tensors))


def test_a_b_that_no_grouping_of_the_rank_gives_is_refused(tiny_sana, tmp_path):
    tensors = tensors_of(tiny_sana.hypernetwork())
    tensors["patch_embed.proj.lora_B.weight"] = torch.zeros(16, 3, 1, 1)
    with pytest.raises(AdapterError, match=r"not two factors.*patch_embed.proj \(A .*B \(16, 3, 1"):
        load_adapter(write_folder(tmp_path / "f", tensors))


def test_one_layer_under_two_prefixes_is_refused(tiny_sana, tmp_path):
    f = tiny_sana.hypernetwork()
    tensors = tensors_of(f) | {"transformer.proj_out.lora_A.weight": torch.zeros(4, 16)}
    with pytest.raises(AdapterError, match="layer proj_out twice"):
        load_adapter(write_folder(tmp_path / "f", tensors))


def test_two_adapters_in_one_file_are_refused(tiny_sana, tmp_path):
    f = tiny_sana.hypernetwork()
    tensors = tensors_of(f, adapter="one") | tensors_of(f, adapter="two")
    with pytest.raises(AdapterError, match=r"several adapters \(one, two\)"):
        load_adapter(write_folder(tmp_path / "f", tensors))


@pytest.mark.parametrize("name", ["f.safetensors", "adapter_model.bin"])
def test_a_truncated_file_is_named(tiny_sana, tmp_path, name):
    path = tmp_path / name
    if name.endswith(".bin"):
        write_folder(tmp_path, tensors_of(tiny_sana.hypernetwork()), weights=name)
    else:
        save_adapter(tiny_sana.hypernetwork(), path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(AdapterError, match=f"{name} is damaged"):
        load_adapter(path)


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_is_refused(tiny_sana, tmp_path):
    tensors = tensors_of(tiny_sana.hypernetwork()) | {"x": RunsCode(tmp_path / "ran")}
    for save in (torch.save, lambda obj, path: path.write_bytes(pickle.dumps(obj))):
        (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
        save(tensors, tmp_path / "adapter_model.bin")
        with pytest.raises(AdapterError, match="can run code"):
            load_adapter(tmp_path)
        assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_8_bit_floats_are_read_exactly_as_float16(tiny_sana, tmp_path, dtype):
    values = torch.arange(256, dtype=torch.uint8).view(dtype)
    exact = [v for v in values.float().tolist() if torch.tensor(v).isfinite()]
    assert len(exact) > 240
    f = tiny_sana.hypernetwork(rank=16)
    branch = f.branches["transformer_blocks.0.attn1.to_q"]
    with torch.no_grad():
        branch.down.view(-1)[: len(exact)] = torch.tensor(exact)
    tensors = {key: tensor.to(dtype) for key, tensor in tensors_of(f).items()}
    loaded = load_adapter(write_folder(tmp_path / "f", tensors, CONFIG | {"r": 16}))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float16}
    read = loaded.branches["transformer_blocks.0.attn1.to_q"].down.detach()
    assert read.view(-1)[: len(exact)].tolist() == exact
    for name, branch in loaded.branches.items():
        assert torch.equal(branch.up.float(), tensors[f"{name}.lora_B.weight"].float())


def test_many_8_bit_floats_are_read_to_the_last(tmp_path):
    count = (1 << 20) + 5
    path = tmp_path / "f.safetensors"
    save_file({"x": torch.full((count,), 1.5).to(torch.float8_e4m3fn)}, path)
    tensors, _ = read_tensors(path)
    assert tensors["x"].dtype == torch.float16
    assert torch.equal(tensors["x"], torch.full((count,), 1.5, dtype=torch.float16))


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (torch.uint16, "of a dtype that is not read.*convert it to float16"),
        (torch.float8_e5m2, "8-bit floats: save it as .safetensors, or convert it to"),
    ],
)
def test_a_dtype_that_is_not_read_from_a_bin_is_not_called_damage(tmp_path, dtype, message):
    tensors = {f"proj_out.lora_{x}.weight": torch.ones(4, 4).to(dtype) for x in ("A", "B")}
    write_folder(tmp_path, tensors, config=None, weights="f.bin")
    with pytest.raises(AdapterError, match=message) as caught:
        load_adapter(tmp_path / "f.bin")
    assert "f.bin" in str(caught.value) and "damaged" not in str(caught.value)


@pytest.mark.parametrize(
    "weights", ["pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin"]
)
def test_a_folder_of_diffusers_without_metadata_lacks_nothing_but_alpha(
    tiny_sana, tmp_path, weights
):
    f = tiny_sana.hypernetwork()
    folder = write_folder(tmp_path / "f", tensors_of(f, "transformer."), None, weights)
    with pytest.raises(AdapterError, match=f"{weights} does not state its LoRA alpha"):
        load_adapter(folder)
    assert_same(load_adapter(folder, alpha=8), f)


def test_pefts_file_of_a_folder_goes_before_diffusers(tiny_sana, tmp_path):
    f = tiny_sana.hypernetwork()
    folder = write_folder(tmp_path / "f", tensors_of(f))
    (folder / "pytorch_lora_weights.safetensors").write_bytes(b"another")
    assert_same(load_adapter(folder), f)


@pytest.mark.parametrize(
    "place", ["f.safetensors", "hyper/adapter_model.safetensors", "a/b/adapter_model.bin"]
)
def test_a_folder_without_weights_points_to_those_below(tiny_sana, tmp_path, place):
    path = tmp_path / "given" / place
    path.parent.mkdir(parents=True)
    write_folder(path.parent, tensors_of(tiny_sana.hypernetwork()), weights=path.name)
    with pytest.raises(
        AdapterError, match=f"given contains none of .*, but {place}: give the file"
    ):
        load_adapter(tmp_path / "given")
    load_adapter(path)


@pytest.mark.parametrize("name", ["F.SAFETENSORS", "F.Bin"])
def test_the_ending_of_a_file_may_be_in_large_letters(tiny_sana, tmp_path, name):
    f = tiny_sana.hypernetwork()
    if name == "F.Bin":
        write_folder(tmp_path, tensors_of(f), weights="f.bin")
        (tmp_path / "f.bin").rename(tmp_path / name)
    else:
        save_adapter(f, tmp_path / name)
        assert (tmp_path / name).is_file()
    assert_same(load_adapter(tmp_path / name), f)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(AdapterError, match="there is no adapter at .*gone"):
        load_adapter(tmp_path / "gone.safetensors")
    with pytest.raises(AdapterError, match="adapter_model.safetensors, adapter_model.bin"):
        load_adapter(tmp_path)
    (tmp_path / "f.ckpt").write_bytes(b"")
    with pytest.raises(AdapterError, match="neither a folder nor"):
        load_adapter(tmp_path / "f.ckpt")


def test_a_damaged_configuration_is_named(tiny_sana, tmp_path):
    folder = write_folder(tmp_path / "f", tensors_of(tiny_sana.hypernetwork()), {"r": 4})
    with pytest.raises(AdapterError, match="adapter_config.json: .*lora_alpha"):
        load_adapter(folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterError, match="adapter_config.json cannot be read"):
        load_adapter(folder)


def test_a_file_of_a_newer_format_is_refused(tiny_sana, tmp_path):
    path = save_adapter(tiny_sana.hypernetwork(), tmp_path / "f.safetensors")
    with safe_open(path, "pt") as file:
        header = file.metadata()
    save_file(load_file(path), path, header | {"format_version": "2"})
    with pytest.raises(AdapterError, match="update hypernoise"):
        load_adapter(path)


@pytest.mark.parametrize("name", ["f.safetensors", "folder"])
def test_a_failed_save_leaves_the_old_file(tiny_sana, tmp_path, monkeypatch, name):
    f = tiny_sana.hypernetwork()
    path = save_adapter(f, tmp_path / name)
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))

    def full_disk(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_adapter(tiny_sana.hypernetwork(seed=1), path)
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*")) == before
    assert_same(load_adapter(path), f)


def test_a_bin_file_is_not_written(tiny_sana, tmp_path):
    with pytest.raises(ValueError, match=r"not as .*f\.bin"):
        save_adapter(tiny_sana.hypernetwork(), tmp_path / "f.bin")


def test_an_adapter_loaded_in_inference_mode_can_be_trained(tiny_sana, tmp_path):
    path = save_adapter(tiny_sana.hypernetwork(), tmp_path / "f.safetensors")
    with torch.inference_mode():
        f = load_adapter(path)
    f(tiny_sana.network, tiny_sana.noise, tiny_sana.conditioning).sum().backward()
    assert all(p.grad is not None for p in f.parameters())
