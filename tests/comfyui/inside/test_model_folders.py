"""Which files and folders the loaders offer."""

import json

import pytest


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
    with pytest.raises(ValueError, match=r"'x' is not in models/hypernoise. Known: .*file\.safe"):
        folders.find(folders.hypernetworks(), "x", "hypernoise")


def test_extra_paths_of_the_user_are_kept(folders, comfy, tmp_path):
    import folder_paths

    folder_paths.add_model_folder_path("hypernoise", str(tmp_path))
    write(tmp_path / "mine.safetensors")
    folders.register()
    assert folders.hypernetworks()["mine.safetensors"] == tmp_path / "mine.safetensors"
