"""Where hypernetworks, rewards and SANA-Sprint folders lie, and their names in the widgets.

- `models/hypernoise/`: .safetensors and .bin files, and peft folders (shown by the folder's name).
- `models/hypernoise_rewards/`: weights of rewards, a folder for each repository.
- `models/sana_sprint/` and ComfyUI's own `models/diffusers/`: folders of SanaSprintPipeline.
- `assets/` of this extension: the embedded generator and hypernetwork, always offered.
"""

import json
import os
from pathlib import Path

import folder_paths

HYPERNOISE = "hypernoise"
REWARDS = "hypernoise_rewards"
SANA_SPRINT = "sana_sprint"
EMBEDDED = " (embedded)"
ASSETS = Path(__file__).resolve().parent.parent / "assets"


def register() -> None:
    """Add our folders to ComfyUI's list, keeping paths from extra_model_paths.yaml."""
    for name, extensions in (
        (HYPERNOISE, {".safetensors", ".bin"}),
        (SANA_SPRINT, set()),
        (REWARDS, set()),
    ):
        folder_paths.add_model_folder_path(name, os.path.join(folder_paths.models_dir, name))
        folder_paths.folder_names_and_paths[name][1].update(extensions)


def hypernetworks() -> dict[str, Path]:
    """The hypernetworks on this machine: the name shown to the user -> file or peft folder."""
    found = {}
    for name in folder_paths.get_filename_list(HYPERNOISE):
        path = Path(folder_paths.get_full_path_or_raise(HYPERNOISE, name))
        folder = Path(name).parent
        if folder != Path() and (path.parent / "adapter_config.json").is_file():
            found[folder.as_posix()] = path.parent
        else:
            found[Path(name).as_posix()] = path
    for path in sorted(ASSETS.glob("*hypernoise*.safetensors")):
        found[path.stem + EMBEDDED] = path
    return found


def rewards_folder() -> Path:
    """Where the weights of rewards lie."""
    return Path(folder_paths.get_folder_paths(REWARDS)[0])


def sana_sprint_folders() -> dict[str, Path]:
    """The SANA-Sprint folders on this machine: the name shown to the user -> folder."""
    found: dict[str, Path] = {}
    for kind in (SANA_SPRINT, "diffusers"):
        for root in folder_paths.get_folder_paths(kind):
            for folder in _pipeline_folders(root):
                found.setdefault(folder.relative_to(root).as_posix(), folder)
    for folder in _pipeline_folders(ASSETS):
        found[folder.name + EMBEDDED] = folder
    return found


def find(known: dict[str, Path], name: str, place: str) -> Path:
    """The path behind a widget's value.

    Raises:
        ValueError: no such name; says which are known and where to put a new one.
    """
    if name not in known:
        names = ", ".join(known) or "none found"
        raise ValueError(f"'{name}' is not in models/{place}. Known: {names}.")
    return known[name]


def fingerprint(path: Path) -> str:
    """A text that changes when the file, or any file of the folder, is replaced."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    stats = [(file, file.stat()) for file in files]
    return "|".join(f"{file}:{stat.st_mtime_ns}:{stat.st_size}" for file, stat in stats)


def _pipeline_folders(root: str | Path) -> list[Path]:
    """Every folder below `root` whose model_index.json names SanaSprintPipeline; no hidden ones."""
    folders = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        if "model_index.json" in files:
            subfolders.clear()
            index = json.loads(Path(folder, "model_index.json").read_text(encoding="utf-8"))
            if index.get("_class_name") == "SanaSprintPipeline" and Path(folder) != Path(root):
                folders.append(Path(folder))
    return sorted(folders)
