"""Write locks/: the packages that the tests install, with versions and SHA-256 hashes.

    python scripts/lock.py                          after a change of pyproject.toml
    python scripts/lock.py --upgrade                update every package
    python scripts/lock.py --upgrade-package peft   update one package

Without these options, locked versions are kept. uv (install it with: pip install uv) resolves once
for Python 3.10 and newer on every platform. The result is split into three files that share no
package, so every version is written only once:

- torch.txt: torch and its CUDA libraries, which set_up.sh may replace with PyTorch's CPU build;
- project.txt: everything else that hypernoise[train,rewards,test] needs;
- comfyui.txt: what ComfyUI's server needs in addition.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = ("torch", "project", "comfyui")
TORCH = re.compile(r"torch|torchvision|torchaudio|triton|(nvidia|cuda)-.*")
PROJECT = ["pyproject.toml", *(f"--extra={name}" for name in ("train", "rewards", "test"))]
HEADER = "# Written by scripts/lock.py, for Python 3.10 and newer. Do not edit.\n"


def main(options: list[str]) -> None:
    if shutil.which("uv") is None:
        raise SystemExit("lock: uv is missing; install it with: pip install uv")
    locks = [ROOT / "locks" / f"{name}.txt" for name in FILES]
    with tempfile.TemporaryDirectory() as folder:
        everything = Path(folder) / "everything.txt"
        # uv keeps the versions in an existing output file.
        everything.write_text("".join(lock.read_text() for lock in locks if lock.exists()))
        compile_([*PROJECT, comfyui_requirements(), "--generate-hashes", *options], everything)
        needed = Path(folder) / "project.txt"
        compile_([*PROJECT, f"--constraints={everything}"], needed)
        project = {name for name, _ in packages(needed)}
        parts = dict.fromkeys(FILES, HEADER)
        for name, entry in packages(everything):
            of_project = "project" if name in project else "comfyui"
            parts["torch" if TORCH.fullmatch(name) else of_project] += entry
    for lock, part in zip(locks, parts.values(), strict=True):
        lock.parent.mkdir(exist_ok=True)
        lock.write_text(part)
        print(f"{lock.relative_to(ROOT)}: {len({name for name, _ in packages(lock)})} packages")


def comfyui_requirements() -> str:
    """The requirements.txt of the ComfyUI release that the tests fetch."""
    environment = {name: value for name, value in os.environ.items() if name != "COMFYUI_PATH"}
    command = [sys.executable, "tests/comfyui/fetch_comfyui.py"]
    result = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return f"{result.stdout.strip()}/requirements.txt"


def compile_(sources: list[str], output: Path) -> None:
    command = ["uv", "pip", "compile", "--quiet", "--universal", "--python-version=3.10"]
    command += ["--no-annotate", "--no-header", f"--output-file={output}", *sources]
    subprocess.run(command, cwd=ROOT, check=True)


def packages(path: Path) -> list[tuple[str, str]]:
    """(name, lines) of each package; several entries if the version depends on Python's."""
    entries = re.split(r"^(?=\w)", path.read_text(), flags=re.MULTILINE)
    return [(entry.split("==")[0], entry) for entry in entries if "==" in entry]


if __name__ == "__main__":
    main(sys.argv[1:])
