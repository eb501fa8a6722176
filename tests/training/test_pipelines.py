"""Which model it is: by what lies in its files, not by its name."""

import os
import shutil
from pathlib import Path

import pytest

from hypernoise.training.embedded_models import ASSETS
from hypernoise.training.pipelines import model_folder, model_identity, text_parts

TINY = ASSETS / "tiny-sprint"
WEIGHTS = Path("transformer", "diffusion_pytorch_model.safetensors")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def change(path: Path) -> None:
    """Other bytes, of the same number and the same time."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def test_a_copy_of_a_model_is_the_same_model_whenever_it_was_made(copy):
    os.utime(copy / WEIGHTS, ns=(5, 5))
    (copy / "README.md").write_text("nothing of the model")
    assert model_identity(copy) == model_identity(TINY)


@pytest.mark.parametrize("name", [WEIGHTS, "model_index.json", "scheduler/scheduler_config.json"])
def test_a_model_whose_file_is_replaced_in_place_is_another(copy, name):
    before, encoders = model_identity(copy), model_identity(copy, text_parts(copy))
    if name == WEIGHTS:
        change(copy / name)
    else:
        (copy / name).write_text((copy / name).read_text() + "\n")
    assert model_identity(copy) != before
    assert model_identity(copy, text_parts(copy)) == encoders


def test_the_text_encoders_are_others_where_one_of_their_files_is(copy):
    parts = text_parts(copy)
    before = model_identity(copy, parts)
    (copy / "tokenizer" / "tokenizer_config.json").unlink()
    assert model_identity(copy, parts) != before
    assert model_identity(copy, ["text_encoder"]) != before
    with pytest.raises(FileNotFoundError, match="no file of text_encoder_9 in"):
        model_identity(copy, ["text_encoder_9"])


def test_a_name_in_the_cache_that_has_moved_on_is_another_model(tmp_path):
    """There a repository's files lie by revision, and refs/main names the newest one."""
    repository = tmp_path / "models--owner--tiny"
    found = []
    for revision, version in (("a" * 40, 1), ("b" * 40, 2)):
        folder = shutil.copytree(TINY, repository / "snapshots" / revision)
        (folder / "vae" / "config.json").write_text(f'{{"version": {version}}}')
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(revision)
        found.append(model_identity(model_folder("owner/tiny", tmp_path)))
    assert found[0] != found[1]
    (repository / "refs" / "main").write_text("a" * 40)
    assert model_identity(model_folder("owner/tiny", tmp_path)) == found[0]
