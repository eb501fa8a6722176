"""The published SANA-Sprint models, and how one gets into the models folder."""

from pathlib import Path

import folder_paths

from ...hypernoise_core import hub
from ...hypernoise_core.rewards.weights import WeightFile, check
from ...hypernoise_core.tensor_file import TensorFileError
from ..model_folders import SANA_SPRINT

REPOSITORIES = {
    name: f"Efficient-Large-Model/{name}"
    for name in ("Sana_Sprint_0.6B_1024px_diffusers", "Sana_Sprint_1.6B_1024px_diffusers")
}
"""Folder name -> repository on Hugging Face."""
_REVISIONS = {"Sana_Sprint_1.6B_1024px_diffusers": "19683c58b7ea290e55cedd8950ae1d86ada7ef96"}
"""The commit that is downloaded; of the others the newest."""
_SUFFIXES = (".json", ".safetensors", ".model", ".txt")  # no code, nothing pickled
_PARTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")


def download(name: str) -> Path:
    """Gets a published model from Hugging Face into models/sana_sprint; goes on where it stopped.

    Until all files are there they lie in a hidden folder, so that half a model is never offered.

    Returns:
        The model's folder.

    Raises:
        OSError: the hub cannot be reached or does not have it.
        TensorFileError: a file that arrived is not the published one.
    """
    from huggingface_hub import snapshot_download

    root = Path(folder_paths.get_folder_paths(SANA_SPRINT)[0])
    arriving, target = root / ".downloading" / name, root / name
    wanted = ["model_index.json"]
    wanted += [f"{part}/*{suffix}" for part in _PARTS for suffix in _SUFFIXES]
    with hub.arriving(REPOSITORIES[name]):
        snapshot_download(
            REPOSITORIES[name],
            local_dir=arriving,
            allow_patterns=wanted,
            revision=_REVISIONS.get(name),
        )
    for path in sorted(arriving.rglob("*.safetensors")):
        published = WeightFile(REPOSITORIES[name], path.relative_to(arriving).as_posix())
        try:
            check(path, published)  # against what the hub said of it
        except TensorFileError:
            path.unlink()  # else the next try takes it for complete
            raise
    arriving.rename(target)
    return target
