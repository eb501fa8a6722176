"""Where hypernetworks, rewards and SANA-Sprint folders are found, and their names in the widgets.

- `models/hypernoise/`: .safetensors and .bin files, and peft folders (shown by the folder's name).
- `models/hypernoise_rewards/`: weights of rewards, a folder for each repository.
- `models/sana_sprint/` and ComfyUI's own `models/diffusers/`: folders of SanaSprintPipeline.
- `assets/` of this extension: the embedded generator and hypernetwork, always offered.

A registered folder may itself be a peft or a SANA-Sprint folder; it is listed by its own name.

A workflow may come from an untrusted source. A widget's value is therefore only looked up among
the files found in these folders, and links out of them are not followed. The links of a Hugging
Face cache, from a snapshot to the blobs beside it, stay inside.
"""

import logging
import os
import stat
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import folder_paths

from ..hypernoise_core.adapter import WEIGHT_NAMES
from ..hypernoise_core.library_folder import read_json
from ..hypernoise_core.links import is_inside
from ..hypernoise_core.text import printable

LOG = logging.getLogger("hypernoise")
HYPERNOISE = "hypernoise"
REWARDS = "hypernoise_rewards"
SANA_SPRINT = "sana_sprint"
WIDGETS = {HYPERNOISE: "hypernetwork", SANA_SPRINT: "folder"}  # the widget that lists each folder
EMBEDDED = " (embedded)"
ASSETS = Path(__file__).resolve().parent.parent / "assets"
NOT_FOLLOWED = (
    "is a link out of the models folders, or is behind one, and such links are not followed. "
    "Register the folder that it points to in extra_model_paths.yaml instead"
)
_ADAPTER = {".safetensors", ".bin"}
_CONFIG = "adapter_config.json"
_PEFT = (_CONFIG, *WEIGHT_NAMES)
_INDEX = "model_index.json"
_LARGEST_INDEX = 1 << 20  # in bytes
_SHOWN = 20  # names in a message


def register() -> None:
    """Add our folders to ComfyUI's list, keeping paths from extra_model_paths.yaml."""
    for name, extensions in ((HYPERNOISE, _ADAPTER), (SANA_SPRINT, set()), (REWARDS, set())):
        folder_paths.add_model_folder_path(name, os.path.join(folder_paths.models_dir, name))
        folder_paths.folder_names_and_paths[name][1].update(extensions)


def hypernetworks() -> dict[str, Path]:
    """The hypernetworks on this machine: the name shown to the user -> file or peft folder."""
    found: dict[str, Path] = {}
    roots = _roots(HYPERNOISE)
    for root in roots:
        for folder, _, files in _walk(root):
            names = sorted(name for name in files if Path(name).suffix.lower() in _ADAPTER)
            # What is read beside the weights must be inside the folders as well.
            peft = [_is_inside_any(folder / name, roots) for name in _PEFT if name in files]
            if not all(peft):
                names = []
            for name in names:
                if not _is_inside_any(folder / name, roots):
                    continue
                paths = [folder] if _CONFIG in files else [folder / name]
                if folder == root:  # a peft adapter may share it with other files
                    paths = [folder / name, *(paths if name in _PEFT else [])]
                for path in paths:
                    if _is_name(shown := _display_name(path, root)):
                        found.setdefault(shown, path)
    for path in sorted(ASSETS.glob("*hypernoise*.safetensors")):
        found[path.stem + EMBEDDED] = path
    return found


def rewards_folders() -> list[Path]:
    """The folders with weights of rewards; downloads go into the first."""
    return _roots(REWARDS)


def sana_sprint_folders() -> dict[str, Path]:
    """The SANA-Sprint folders on this machine: the name shown to the user -> folder."""
    found: dict[str, Path] = {}
    for kind in (SANA_SPRINT, "diffusers"):
        for root in _roots(kind):
            for folder in _pipeline_folders(root):
                if _is_name(shown := _display_name(folder, root)):
                    found.setdefault(shown, folder)
    for folder in _pipeline_folders(ASSETS):
        found[folder.name + EMBEDDED] = folder
    return found


def find(known: dict[str, Path], name: str, kind: str) -> Path:
    """The path for a widget's value, which may be of any type if the widget is linked.

    Raises:
        ValueError: no such name; lists those that are available.
    """
    if isinstance(name, str) and name in known:
        return known[name]
    shown = f"{WIDGETS[kind]} {name!r:.200}"
    names = ", ".join(list(known)[:_SHOWN]) or "none"
    names += f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    if not isinstance(name, str) or not _is_name(name) or _is_path(name):
        raise ValueError(f"{shown} is not a valid name in models/{kind}. Available: {names}.")
    if any(_is_linked(root, name) for root in _roots(kind)):
        raise ValueError(f"{shown} in models/{kind} {NOT_FOLLOWED}.")
    raise ValueError(f"{shown} is not in models/{kind}. Available: {names}.")


def check_links(folder: Path, kind: str) -> None:
    """Check that all files of a chosen folder are inside the models folders.

    Raises:
        ValueError: names the link that leads out of them.
    """
    roots = [*_roots(kind), *_roots("diffusers"), ASSETS]
    for path in folder.rglob("*"):
        if _is_link(path) and not (path.is_file() and _is_inside_any(path, roots)):
            raise ValueError(f"{str(path)!r} {NOT_FOLLOWED}.")


def fingerprint_of(known: dict[str, Path], name: str | None) -> str:
    """A text that changes when the file or folder of a widget's value is replaced.

    ComfyUI passes None if the widget is linked. The value is then unknown, so the text changes when
    any of the known files or folders is replaced.
    """
    names = known if name is None else {name} & known.keys()
    return "|".join(fingerprint(known[name]) for name in names)


def fingerprint(path: Path) -> str:
    """A text that changes when the file, or any file of the folder, is replaced."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    stats = [(file, file.stat()) for file in files]
    return "|".join(f"{file}:{stat.st_mtime_ns}:{stat.st_size}" for file, stat in stats)


def _roots(kind: str) -> list[Path]:
    return [Path(path) for path in folder_paths.get_folder_paths(kind)]


def _display_name(path: Path, root: Path) -> str:
    """The widget's name for a path in a registered folder, or for that folder itself."""
    return root.name if path == root else path.relative_to(root).as_posix()


def _walk(root: Path) -> Iterator[tuple[Path, list[str], set[str]]]:
    """Like `os.walk`, as (folder, subfolders, files); callers may remove subfolders to skip them.

    Links to folders are not followed, so that a cycle of them cannot be entered. Folders that
    cannot be read are skipped.
    """
    for folder, subfolders, files in os.walk(root):
        linked = [name for name in subfolders if _is_link(Path(folder, name))]
        for name in linked:
            _log_once(f"{os.path.join(folder, name)!r} {NOT_FOLLOWED}.")
        subfolders[:] = sorted(set(subfolders) - set(linked))
        yield Path(folder), subfolders, set(files)


def _pipeline_folders(root: Path) -> list[Path]:
    """`root` and every folder below it whose model_index.json names SanaSprintPipeline, except
    hidden folders."""
    folders = []
    for folder, subfolders, files in _walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        if _INDEX in files:
            subfolders.clear()
            if _is_sana_sprint(folder / _INDEX, root):
                folders.append(folder)
    return sorted(folders)


def _is_sana_sprint(index: Path, root: Path) -> bool:
    """False for a file that cannot be read, so that it does not break the whole menu."""
    if not _is_inside_any(index, [root]):
        return False
    try:
        return read_json(index, _LARGEST_INDEX).get("_class_name") == "SanaSprintPipeline"
    except ValueError as error:
        _log_once(f"skipping this folder: {error}")
        return False


def _is_inside_any(path: Path, roots: Iterable[Path]) -> bool:
    """Whether the path is a file that is inside one of these folders after resolving links."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        if not path.is_symlink():
            return True
        real = path.resolve(strict=True)
        inside = any(is_inside(real, root.resolve()) for root in roots)
    except (OSError, RuntimeError):  # a broken link, or a cycle of links
        return False
    if not inside:
        _log_once(f"{str(path)!r} {NOT_FOLLOWED}.")
    return inside


def _is_link(path: Path) -> bool:
    """Whether it is a symbolic link or a Windows junction."""
    try:
        status = path.lstat()
    except OSError:
        return False
    junction = getattr(stat, "IO_REPARSE_TAG_MOUNT_POINT", None)
    return stat.S_ISLNK(status.st_mode) or (
        junction is not None and getattr(status, "st_reparse_tag", None) == junction
    )


def _is_linked(root: Path, name: str) -> bool:
    """Whether `name` below `root` is a link or is behind one."""
    path = root / name
    chain = [path, *path.parents[: len(Path(name).parts) - 1]]
    if any(map(_is_link, chain)):
        return True
    return any(_is_link(path / part) for part in (*_PEFT, _INDEX))


def _is_name(name: str) -> bool:
    """Whether it can be displayed: it has no control characters and no lone surrogates."""
    return printable(name) == name and "\n" not in name and "\t" not in name


def _is_path(name: str) -> bool:
    """Whether it is a path, on any system, rather than a name below a folder."""
    parts = name.replace("\\", "/").split("/")
    return name == "" or ".." in parts or parts[0] == "" or ":" in parts[0]


@lru_cache(maxsize=1000)
def _log_once(text: str) -> None:
    LOG.warning("HyperNoise: %s", printable(text))
