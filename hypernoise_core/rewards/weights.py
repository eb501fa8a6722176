"""Where the weights of rewards are: the user's folders, or else the Hugging Face cache.

Nothing is downloaded unless `download` is called. A file is compared with the SHA-256 that was
published for it: the one given in this package, else the one that the hub sent with the download,
which the cache keeps as the name of the file's blob, and a local folder in `.cache/huggingface`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..errors import TensorFileError
from ..file_identity import published_sha256, sha256_of
from ..hub import arriving

_T = TypeVar("_T")


@dataclass(frozen=True)
class WeightFile:
    """One file of a repository on the Hugging Face hub."""

    repository: str
    name: str
    """Path inside the repository."""
    size: int | None = None
    """In bytes, where it is known."""
    sha256: str | None = None
    """If known; else the one that the hub sent with the download counts."""
    revision: str | None = None
    """The commit that is downloaded; None: the newest."""

    def inside(self, folder: Path) -> Path:
        """Where a folder of weights holds it: FOLDER/REPOSITORY'S NAME/FILE."""
        return folder / self.repository.split("/")[-1] / self.name


class WeightStore:
    """Finds, checks and shares the weights of rewards that are loaded together.

    Args:
        folder: looked through before the Hugging Face cache; it holds a folder for each
            repository, of the repository's name. Of several, the first one that has a file counts,
            and downloads go into the first.
        dtype: of the large networks; small heads stay in float32.
    """

    def __init__(
        self,
        folder: str | Path | Sequence[Path] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if isinstance(folder, (str, Path)):
            folder = [Path(folder)]
        self.folders = list(folder or ())
        self.dtype = dtype
        self._loaded: dict[Hashable, Any] = {}

    def once(self, key: Hashable, load: Callable[[], _T]) -> _T:
        """What `load` gives, loaded once for this key: rewards on the same weights share them."""
        if key not in self._loaded:
            self._loaded[key] = load()
        return self._loaded[key]

    def find(self, file: WeightFile) -> Path:
        """The file on this machine, checked.

        Raises:
            FileNotFoundError: names what was looked for and where.
            TensorFileError: the file is not the one that was published, or a link out of the
                folder.
        """
        path = self.look_for(file)
        if path is None:
            places = [str(file.inside(folder)) for folder in self.folders]
            places.append(f"the Hugging Face cache ({_hub().constants.HF_HUB_CACHE})")
            raise FileNotFoundError(
                f"{file.name} of {file.repository} is missing; looked for at "
                f"{', at '.join(places[:-1])}{' and in ' * (len(places) > 1)}{places[-1]}"
            )
        check(path, file)
        return path

    def download(self, file: WeightFile) -> Path:
        """Gets a file from the hub, into the first folder if there is one, else into the cache.

        Raises:
            OSError: the hub cannot be reached or does not have it.
            TensorFileError: what arrived is not what was published.
        """
        target = file.inside(self.folders[0]).parent if self.folders else None
        hub = _hub()
        with arriving(f"{file.name} of {file.repository}"):
            path = hub.hf_hub_download(
                file.repository, file.name, local_dir=target, revision=file.revision
            )
        check(Path(path), file)
        return Path(path)

    def fetch(self, file: WeightFile) -> Path:
        """The file on this machine, downloaded if it is not here.

        Raises:
            OSError, TensorFileError: as `find` and `download` raise them.
        """
        return self.download(file) if self.look_for(file) is None else self.find(file)

    def look_for(self, file: WeightFile) -> Path | None:
        """Where the file is on this machine, unchecked; None where it is not.

        Raises:
            TensorFileError: it is a link out of the folder.
        """
        for folder in self.folders:
            if not (path := file.inside(folder)).is_file():
                continue
            if not path.resolve().is_relative_to(folder.resolve()):
                raise TensorFileError(
                    f"{path} is reached through a link out of {folder}, which is not followed: "
                    f"put the file itself there, or give the folder that contains it"
                )
            return path
        for revision in dict.fromkeys((file.revision, None)):  # None: what the cache calls main
            found = _hub().try_to_load_from_cache(file.repository, file.name, revision=revision)
            if isinstance(found, str):
                return Path(found)
        return None


def check(path: Path, file: WeightFile) -> None:
    """Compare a file with its published size and SHA-256, as far as they are known.

    Raises:
        TensorFileError: it differs.
    """
    remedy = f"delete it and download it from {file.repository} again"
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        raise TensorFileError(f"{path} has {size} bytes instead of {file.size}; {remedy}")
    top = path.parents[len(Path(file.name).parts) - 1]
    expected = file.sha256 or published_sha256(path, top)
    if expected and (found := sha256_of(path)) != expected:
        raise TensorFileError(
            f"{path} is damaged or another file: its SHA-256 is {found}, published is {expected}; "
            f"{remedy}"
        )


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            "weights of rewards need huggingface_hub: pip install huggingface_hub"
        ) from error
    return huggingface_hub
