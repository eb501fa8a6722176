"""The published SANA-Sprint models, and how one gets into the models folder."""

from pathlib import Path

import folder_paths

from ..model_folders import SANA_SPRINT

REPOSITORIES = {
    name: f"Efficient-Large-Model/{name}"
    for name in ("Sana_Sprint_0.6B_1024px_diffusers", "Sana_Sprint_1.6B_1024px_diffusers")
}
"""Folder name -> repository on Hugging Face."""
_PARTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")


def download(name: str) -> Path:
    """Gets a published model from Hugging Face into models/sana_sprint; goes on where it stopped.

    Until all files are there they lie in a hidden folder, so that half a model is never offered.

    Returns:
        The model's folder.
    """
    from huggingface_hub import snapshot_download

    root = Path(folder_paths.get_folder_paths(SANA_SPRINT)[0])
    arriving, target = root / ".downloading" / name, root / name
    wanted = ["model_index.json", *(f"{part}/*" for part in _PARTS)]
    snapshot_download(REPOSITORIES[name], local_dir=arriving, allow_patterns=wanted)
    arriving.rename(target)
    return target
