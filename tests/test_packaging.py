"""pyproject.toml against the folders, the Comfy registry's rules, and a wheel really built."""

import re
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
ORACLE = "rewards-oracle"  # pins of its own, for an environment of its own
EXTRAS = {name: what for name, what in PROJECT["optional-dependencies"].items() if name != ORACLE}
COMFY = PYPROJECT["tool"]["comfy"]
CODE_FOLDERS = ("hypernoise_core", "nodes", "training")
DATA_FOLDERS = ("assets", "locales", "web", "workflows")

# docs.comfy.org/registry/specifications
COMFY_KEYS = {
    "PublisherId",
    "DisplayName",
    "Icon",
    "Banner",
    "requires-comfyui",
    "includes",
    "web",
    "Models",
    "version",
}


def requirements_of(name: str) -> list[str]:
    """The lines of a requirements file without comments and blank lines."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [line for line in (line.split("#")[0].strip() for line in lines) if line]


def name_of(requirement: str) -> str:
    """The distribution's name, normalised as PEP 503 says."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()


def test_every_sub_package_is_listed():
    folders = {"hypernoise"}
    for folder in CODE_FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            folders.add(".".join(("hypernoise", *path.parent.relative_to(ROOT).parts)))
    assert sorted(PYPROJECT["tool"]["setuptools"]["packages"]) == sorted(folders)


def test_every_sub_package_has_an_init():
    for package in PYPROJECT["tool"]["setuptools"]["packages"]:
        folder = ROOT.joinpath(*package.split(".")[1:])
        assert (folder / "__init__.py").is_file(), f"{package} has no __init__.py"


def test_requirements_equal_the_dependencies():
    assert requirements_of("requirements.txt") == PROJECT["dependencies"]


def test_dependencies_suit_a_users_comfyui():
    for requirement in PROJECT["dependencies"]:
        assert not name_of(requirement).startswith(("torch", "nvidia", "triton")), requirement
        assert re.fullmatch(r"[\w.-]+(>=[\d.]+)?", requirement), f"{requirement}: lower bounds only"


def test_extras_have_lower_bounds_only():
    for requirements in EXTRAS.values():
        for requirement in requirements:
            assert re.fullmatch(r"[\w.-]+>=[\d.]+", requirement.split(";")[0]), requirement


def test_name_and_version_suit_the_registry():
    assert re.fullmatch(r"[a-z]+([-_.]?[a-z0-9]+)*", PROJECT["name"], re.IGNORECASE)
    assert len(PROJECT["name"]) < 100
    assert "comfyui" not in PROJECT["name"].lower()
    assert re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}", PROJECT["version"])


def test_comfy_table_suits_the_registry():
    assert set(COMFY) <= COMFY_KEYS
    assert re.fullmatch(r"[a-z][a-z0-9-]*", COMFY["PublisherId"])
    for part in COMFY["requires-comfyui"].split(","):
        assert re.fullmatch(r"(==|>=|<=|!=|~=|>|<)\d+\.\d+\.\d+(-\w+)?", part.strip())
    assert PROJECT["urls"]["Repository"].startswith("https://github.com/")


def test_classifiers_suit_the_registry():
    """One entry that it does not know drops all of its kind."""
    known = {
        "Operating System :: OS Independent",
        "Environment :: GPU :: NVIDIA CUDA",
        "Environment :: GPU :: AMD ROCm",
        "Environment :: GPU :: Intel Arc",
        "Environment :: GPU :: Apple Metal",
        "Environment :: NPU :: Huawei Ascend",
    }
    read = {
        classifier
        for classifier in PROJECT["classifiers"]
        if classifier.startswith(("Operating System", "Environment"))
    }
    assert read <= known


def test_icon_is_a_small_square():
    repository = PROJECT["urls"]["Repository"].removeprefix("https://github.com/")
    prefix = f"https://raw.githubusercontent.com/{repository}/main/"
    assert COMFY["Icon"].startswith(prefix)
    content = (ROOT / COMFY["Icon"].removeprefix(prefix)).read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])  # the IHDR chunk comes first
    assert width == height <= 400


def test_changelog_knows_the_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{PROJECT['version']}]" in changelog or "## [Unreleased]" in changelog


def test_console_script_exists():
    module, function = PROJECT["scripts"]["hypernoise"].split(":")
    command = [sys.executable, "-c", f"from {module} import {function} as main; print(main)"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_registry_s_archive_lacks_nothing_that_runs():
    """.comfyignore takes files away as .gitignore does."""
    command = ["git", "ls-files", "--cached", "--ignored", "--exclude-from=.comfyignore"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f"not a git checkout: {result.stderr.strip()}")
    left_out = {Path(name).parts[0] for name in result.stdout.splitlines()}
    assert "tests" in left_out
    assert not left_out & {*CODE_FOLDERS, *DATA_FOLDERS, "__init__.py", "requirements.txt"}


@pytest.mark.slow
def test_wheel_holds_every_file_of_the_package(tmp_path):
    """Built from a copy: setuptools leaves its build folder beside the sources."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "__init__.py"):
        shutil.copy(ROOT / name, source)
    expected = {"hypernoise/__init__.py"}
    for folder in (*CODE_FOLDERS, *DATA_FOLDERS):
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(ROOT / folder, source / folder, ignore=ignored)
        for path in (source / folder).rglob("*"):
            if path.is_file():
                expected.add(f"hypernoise/{path.relative_to(source).as_posix()}")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("hypernoise-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    outside = {name for name in packed if not name.startswith("hypernoise")}
    inside = {name for name in packed - outside if ".dist-info/" not in name}
    assert inside == expected
    assert outside == set()
