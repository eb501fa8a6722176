"""The published SANA-Sprint models, and their download."""

from pathlib import Path

import folder_paths

from ...hypernoise_core import hub
from ...hypernoise_core.errors import TensorFileError
from ...hypernoise_core.rewards.weights import WeightFile, check
from ..model_folders import SANA_SPRINT

REPOSITORIES = {
    name: f"Efficient-Large-Model/{name}"
    for name in ("Sana_Sprint_0.6B_1024px_diffusers", "Sana_Sprint_1.6B_1024px_diffusers")
}
"""Folder name -> repository on Hugging Face."""
_REVISIONS = {"Sana_Sprint_1.6B_1024px_diffusers": "19683c58b7ea290e55cedd8950ae1d86ada7ef96"}
"""The commit that is downloaded; the newest one for other models."""
_SUFFIXES = (".json", ".safetensors", ".model", ".txt")  # no code, nothing pickled
_PARTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")


def download(name: str) -> Path:
    """Download a published model to models/sana_sprint, resuming an earlier attempt.

    The files stay in a hidden folder until all have arrived, so that half a model is never listed.

    Returns:
        The model's folder.

    Raises:
        OSError: the hub cannot be reached or does not have it.
        TensorFileError: a file that arrived is not the published one.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils import filter_repo_objects

    root = Path(folder_paths.get_folder_paths(SANA_SPRINT)[0])
    partial, target = root / ".downloading" / name, root / name
    wanted = ["model_index.json"]
    wanted += [f"{part}/*{suffix}" for part in _PARTS for suffix in _SUFFIXES]
    repository = REPOSITORIES[name]
    with hub.arriving(repository):
        # If the hub does not answer, snapshot_download treats a partial folder as complete.
        model = HfApi().model_info(repository, revision=_REVISIONS.get(name))
        snapshot_download(repository, local_dir=partial, allow_patterns=wanted, revision=model.sha)
        listed = filter_repo_objects(
            [file.rfilename for file in model.siblings], allow_patterns=wanted
        )
        if missing := [file for file in listed if not (partial / file).is_file()]:
            raise OSError(f"{len(missing)} of its files are missing, such as {missing[0]}")
    for path in sorted(partial.rglob("*.safetensors")):
        published = WeightFile(repository, path.relative_to(partial).as_posix())
        try:
            check(path, published)  # against the hub's metadata
        except TensorFileError:
            path.unlink()  # else the next try takes it for complete
            raise
    partial.rename(target)
    return target
