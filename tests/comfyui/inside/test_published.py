"""Published SANA-Sprint models: offered always, downloaded only when that is asked for.

The hub cannot be reached here; in its place stands a function that copies the tiny generator.
"""

import shutil
from types import SimpleNamespace

import pytest

NAME = "Sana_Sprint_0.6B_1024px_diffusers"


@pytest.fixture
def hub(models, monkeypatch):
    """What was downloaded: (repository, folder) pairs; `hub.broken` breaks off half-way, and
    `hub.away` gives no answer at all."""

    class Hub(list):
        broken, away, revision = False, False, None

    hub = Hub()
    files = [
        path.relative_to(models.folder_path).as_posix()
        for path in models.folder_path.rglob("*")
        if path.is_file()
    ]

    def model_info(self, repository, *, revision):
        if hub.away == "all along":
            raise ConnectionError("the hub does not answer")
        siblings = [SimpleNamespace(rfilename=name) for name in (*files, "README.md", "x/run.py")]
        return SimpleNamespace(sha=revision or "newest", siblings=siblings)

    def snapshot_download(repository, *, local_dir, allow_patterns, revision):
        assert not any(pattern.endswith(("*", ".py", ".bin")) for pattern in allow_patterns)
        hub.append((repository, local_dir))
        hub.revision = revision
        local_dir.mkdir(parents=True, exist_ok=True)
        shutil.copy(models.folder_path / "model_index.json", local_dir)
        if hub.away:  # the client logs a warning and takes what is there
            return
        if hub.broken:
            raise ConnectionError("the hub does not answer")
        shutil.copytree(models.folder_path, local_dir, dirs_exist_ok=True)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    yield hub
    shutil.rmtree(models.base / "models" / "sana_sprint", ignore_errors=True)


def load(comfy, **options):
    return comfy.run(
        "HyperNoise_LoadSanaSprint", folder=NAME, instruction=True, precision="auto", **options
    )


def test_published_models_are_offered_and_nothing_is_downloaded_unasked(comfy, hub):
    schema = comfy.nodes.NODE_CLASS_MAPPINGS["HyperNoise_LoadSanaSprint"].INPUT_TYPES()
    assert NAME in schema["required"]["folder"][1]["options"]
    with pytest.raises(ValueError, match=f"'{NAME}' is not in models/sana_sprint. Turn on downl"):
        load(comfy)
    assert hub == []


def test_the_switch_downloads_once(comfy, hub, models):
    for _ in range(2):
        assert len(load(comfy, download=True)) == 3
    assert len(hub) == 1
    assert hub[0][0] == f"Efficient-Large-Model/{NAME}"
    assert (models.base / "models" / "sana_sprint" / NAME / "vae").is_dir()
    assert len(load(comfy)) == 3


def test_a_file_that_is_not_the_published_one_is_refused_and_got_again(comfy, hub, models):
    weights = "vae/diffusion_pytorch_model.safetensors"
    record = models.base / f"models/sana_sprint/.downloading/{NAME}/.cache/huggingface/download"
    record = record / f"{weights}.metadata"
    record.parent.mkdir(parents=True)
    record.write_text(f"commit\n{'0' * 64}\n0.0\n")  # as the hub's client notes it
    with pytest.raises(ValueError, match=f"{weights} is damaged .* download it from Efficient"):
        load(comfy, download=True)
    assert NAME not in comfy.ours("nodes.model_folders").sana_sprint_folders()
    assert not (record.parents[4] / weights).exists()
    record.unlink()
    assert len(load(comfy, download=True)) == 3


def test_a_download_that_broke_off_is_not_offered_and_goes_on_later(comfy, hub):
    hub.broken = True
    with pytest.raises(OSError, match=f"{NAME} could not be downloaded from .*does not answer"):
        load(comfy, download=True)
    assert NAME not in comfy.ours("nodes.model_folders").sana_sprint_folders()
    hub.broken = False
    assert len(load(comfy, download=True)) == 3
    assert hub[0][1] == hub[1][1]  # the same folder, where the hub's client finds what is there


def test_a_commit_that_was_looked_through_is_the_one_that_is_downloaded(comfy, hub):
    inputs = {"instruction": True, "precision": "auto", "download": True}
    name = NAME.replace("0.6B", "1.6B")
    assert len(comfy.run("HyperNoise_LoadSanaSprint", folder=name, **inputs)) == 3
    assert hub[0][0].endswith(name) and len(hub.revision) == 40


@pytest.mark.parametrize("away", ["all along", "after a moment"])
def test_half_a_download_is_not_taken_for_the_whole_where_the_hub_is_away(comfy, hub, away):
    hub.broken = True
    with pytest.raises(OSError, match="could not be downloaded"):
        load(comfy, download=True)
    hub.broken, hub.away = False, away
    with pytest.raises(
        OSError, match=f"{NAME} could not be downloaded from .*(missing|does not answer)"
    ):
        load(comfy, download=True)
    assert NAME not in comfy.ours("nodes.model_folders").sana_sprint_folders()
    hub.away = False
    assert len(load(comfy, download=True)) == 3
