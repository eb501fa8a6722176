"""Which files and folders the loaders offer, and that those load."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from hypernoise.tests.comfyui.stand_ins import FILE


@pytest.fixture
def folders(comfy):
    return comfy.ours("nodes.model_folders")


@pytest.fixture
def models_folder(models):
    return models.base / "models"


def write(path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_peft_folders_are_listed_by_folder_and_files_by_name(folders, models_folder):
    nested = models_folder / "hypernoise" / "sets" / "red"
    write(nested / "adapter_config.json", "{}")
    write(nested / "adapter_model.bin")
    write(models_folder / "hypernoise" / "sets" / "blue.safetensors")
    write(models_folder / "hypernoise" / "sets" / "readme.md")
    found = folders.hypernetworks()
    assert found["sets/red"] == nested
    assert found["sets/blue.safetensors"].name == "blue.safetensors"
    assert not [name for name in found if "readme" in name or "adapter_" in name]


def test_sana_folders_of_both_places_are_listed_and_other_pipelines_are_not(folders, models_folder):
    for place, name, kind in (
        ("sana_sprint", "a/deep", "SanaSprintPipeline"),
        ("diffusers", "shared", "SanaSprintPipeline"),
        ("diffusers", "other", "FluxPipeline"),
    ):
        index = models_folder / place / name / "model_index.json"
        write(index, json.dumps({"_class_name": kind}))
    found = folders.sana_sprint_folders()
    assert found["a/deep"] == models_folder / "sana_sprint" / "a" / "deep"
    assert found["shared"] == models_folder / "diffusers" / "shared"
    assert "other" not in found


def test_fingerprint_follows_every_file_of_a_folder(folders, tmp_path):
    write(tmp_path / "model" / "weights", "1")
    before = folders.fingerprint(tmp_path)
    assert folders.fingerprint(tmp_path) == before
    write(tmp_path / "model" / "weights", "22")
    assert folders.fingerprint(tmp_path) != before


def test_an_unknown_name_says_where_to_put_the_file(folders):
    with pytest.raises(
        ValueError, match=r"'x' is not in models/hypernoise. Available: .*file\.safe"
    ):
        folders.find(folders.hypernetworks(), "x", "hypernoise")


@pytest.fixture
def register(monkeypatch):
    """Adds a folder as a line in extra_model_paths.yaml does, for one test."""
    import folder_paths

    def add(kind: str, path: Path) -> None:
        paths, extensions = folder_paths.folder_names_and_paths[kind]
        entry = ([str(path), *paths], extensions)
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, entry)

    return add


@pytest.mark.parametrize(
    ("node", "value", "file"),
    [
        ("LoadHypernetwork", {"hypernetwork": "new.bin"}, "hypernoise/new.bin"),
        ("LoadHypernetwork", {"hypernetwork": "one"}, "hypernoise/one/adapter_config.json"),
        ("LoadSanaSprint", {"folder": "new"}, "sana_sprint/new/vae/weights.safetensors"),
        (
            "LoadReward",
            {"reward": "HPSv2.1 (hps)"},
            "hypernoise_rewards/HPSv2/HPS_v2.1_compressed.pt",
        ),
    ],
)
def test_a_file_replaced_by_one_of_the_same_name_and_size_is_loaded_anew(
    comfy, register, tmp_path, node, value, file
):
    """As a training that went on writes its adapter once more."""
    path, kind = tmp_path / file, Path(file).parts[0]
    register(kind, tmp_path / kind)
    write(tmp_path / "hypernoise/one/adapter_model.bin")
    write(tmp_path / "sana_sprint/new/model_index.json", '{"_class_name": "SanaSprintPipeline"}')
    write(path, "first")
    fingerprint_inputs = comfy.nodes.NODE_CLASS_MAPPINGS[f"HyperNoise_{node}"].fingerprint_inputs
    before = fingerprint_inputs(**value)
    assert before and fingerprint_inputs(**value) == before
    write(tmp_path / "next", "other")
    os.utime(tmp_path / "next", (time.time() + 1,) * 2)  # clocks of files are coarse
    (tmp_path / "next").replace(path)
    assert fingerprint_inputs(**value) != before


def load(comfy, folder: str) -> tuple:
    return comfy.run("HyperNoise_LoadSanaSprint", folder=folder, instruction=True, precision="auto")


def write_cache(hub: Path, source: Path) -> Path:
    """The layout of the Hugging Face cache; returns the snapshot."""
    top = hub / "models--someone--Sana"
    snapshot = top / "snapshots" / "abc123"
    (top / "blobs").mkdir(parents=True)
    for i, path in enumerate(p for p in sorted(source.rglob("*")) if p.is_file()):
        blob, target = top / "blobs" / f"{i:064x}", snapshot / path.relative_to(source)
        shutil.copy(path, blob)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(os.path.relpath(blob, target.parent))
    return snapshot


@pytest.mark.parametrize("registered", [".", "models--someone--Sana", "snapshot"])
@pytest.mark.parametrize("kind", ["sana_sprint", "diffusers"])
def test_a_hugging_face_cache_is_offered_from_any_of_its_folders(
    folders, comfy, models, register, tmp_path, registered, kind
):
    snapshot = write_cache(tmp_path / "hub", models.folder_path)
    register(kind, snapshot if registered == "snapshot" else tmp_path / "hub" / registered)
    (name,) = [name for name, path in folders.sana_sprint_folders().items() if path == snapshot]
    assert name.endswith("abc123")
    assert len(load(comfy, name)) == 3


@pytest.mark.parametrize("linked", ["blob", "file of the snapshot"])
def test_a_link_that_leads_out_of_a_cache_is_refused(comfy, models, register, tmp_path, linked):
    snapshot = write_cache(tmp_path / "hub", models.folder_path)
    register("sana_sprint", snapshot)
    weights = snapshot / "vae" / "diffusion_pytorch_model.safetensors"
    elsewhere = Path(shutil.copy(weights, tmp_path / "elsewhere.safetensors"))
    link = weights.resolve() if linked == "blob" else weights
    link.unlink()
    link.symlink_to(elsewhere)
    with pytest.raises(ValueError, match="extra_model_paths.yaml"):
        load(comfy, "abc123")


def test_a_folder_that_is_registered_as_the_log_advises_is_offered(
    folders, comfy, models, models_folder, register, tmp_path, caplog
):
    """A link leads to it, which is not followed; the log says what to register."""
    adapter = models.adapter("peft")
    for kind, source, known in (
        ("sana_sprint", models.folder_path, folders.sana_sprint_folders),
        ("hypernoise", adapter, folders.hypernetworks),
    ):
        own = tmp_path / f"my {kind}"
        shutil.copytree(source, own)
        link = models_folder / kind / "linked"
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(own, True)
        try:
            assert own.name not in known() and "linked" not in known()
            assert f"{str(link)!r} {folders.NOT_FOLLOWED}" in caplog.text
            register(kind, link.resolve())
            assert known()[own.name] == own
        finally:
            link.unlink()
    assert len(load(comfy, "my sana_sprint")) == 3
    comfy.run("HyperNoise_LoadHypernetwork", hypernetwork="my hypernoise")


def test_files_beside_a_peft_adapter_in_a_registered_folder_stay(
    folders, models, register, tmp_path
):
    shutil.copytree(models.adapter("peft"), tmp_path / "many")
    shutil.copy(models.adapter(FILE), tmp_path / "many" / "other.safetensors")
    register("hypernoise", tmp_path / "many")
    found = {path: name for name, path in folders.hypernetworks().items()}
    for path in (".", "other.safetensors", "adapter_model.safetensors"):
        assert tmp_path / "many" / path in found


def test_a_suffix_in_capitals_is_one(folders, comfy, models, models_folder):
    for name in ("LOUD.SAFETENSORS", "Loud.SafeTensors"):
        shutil.copy(models.adapter(FILE), models_folder / "hypernoise" / name)
        assert name in folders.hypernetworks()
        comfy.run("HyperNoise_LoadHypernetwork", hypernetwork=name)


def test_rewards_are_found_in_every_registered_folder(comfy, models_folder, register, tmp_path):
    """An extra one comes first in ComfyUI's list, and does not hide the one in models/."""
    from hypernoise.hypernoise_core.rewards import get_reward

    (file,) = [file for file in get_reward("aesthetic").files if file.name.endswith(".pth")]
    local, extra = models_folder / "hypernoise_rewards", tmp_path / "extra"
    register("hypernoise_rewards", extra)

    def message() -> str:
        with pytest.raises((FileNotFoundError, ValueError)) as error:
            comfy.run("HyperNoise_LoadReward", reward="LAION aesthetic (aesthetic)", weight=1.0)
        return str(error.value)

    assert f"looked for at {file.inside(extra)}, at {file.inside(local)} and in" in message()
    for folder in (local, extra):  # the first that has it counts
        write(file.inside(folder), "not the weights")
        assert str(file.inside(folder)) in message() and "missing" not in message()
    shutil.rmtree(local)


def rename_weights(folder: Path, variant: str, parts: tuple[str, ...]) -> None:
    for part in parts:
        for path in (folder / part).glob("*.safetensors"):
            path.rename(path.with_suffix(f".{variant}.safetensors"))


NETWORKS = ("transformer", "text_encoder", "vae")


@pytest.mark.parametrize("parts", [NETWORKS, ("vae",), ("text_encoder",), ("transformer",)])
def test_weights_of_a_variant_are_read_where_there_are_no_others(
    comfy, loaded, models, models_folder, parts
):
    folder = models_folder / "sana_sprint" / "variant"
    shutil.copytree(models.folder_path, folder)
    try:
        rename_weights(folder, "fp16", parts)
        model, clip, vae = load(comfy, "variant")
        prompt = comfy.nodes.CLIPTextEncode().encode(clip, "three green triangles")[0]
        found = vae.decode(comfy.sample(model, prompt, loaded.latent))
        expected = loaded.vae.decode(comfy.sample(loaded.model, loaded.prompt, loaded.latent))
        assert (found - expected).abs().max() < 1e-5
    finally:
        shutil.rmtree(folder)


def test_weights_in_parts_of_a_variant_are_read(comfy, loaded, models, models_folder):
    from diffusers import SanaTransformer2DModel

    folder = models_folder / "sana_sprint" / "parts"
    shutil.copytree(models.folder_path, folder)
    try:
        network = SanaTransformer2DModel.from_pretrained(folder, subfolder="transformer")
        shutil.rmtree(folder / "transformer")
        network.save_pretrained(folder / "transformer", variant="bf16", max_shard_size="500KB")
        assert len(list((folder / "transformer").glob("*.safetensors"))) > 1
        model = load(comfy, "parts")[0]
        found = comfy.sample(model, loaded.prompt, loaded.latent)
        expected = comfy.sample(loaded.model, loaded.prompt, loaded.latent)
        assert (found - expected).abs().max() < 1e-5
    finally:
        shutil.rmtree(folder)


def test_extra_paths_of_the_user_are_kept(folders, comfy, tmp_path):
    import folder_paths

    folder_paths.add_model_folder_path("hypernoise", str(tmp_path))
    write(tmp_path / "mine.safetensors")
    folders.register()
    assert folders.hypernetworks()["mine.safetensors"] == tmp_path / "mine.safetensors"
