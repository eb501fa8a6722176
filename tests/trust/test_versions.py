"""What is installed: the locks, the bounds of pyproject.toml and docs/versions.md agree."""

import re
import sys
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from hypernoise.tests.comfyui.fetch_comfyui import RELEASES, VERSION

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
NAMED = [*PYPROJECT["project"]["dependencies"], *EXTRAS["train"], *EXTRAS["rewards"]]
NAMED += EXTRAS["test"]
LOCKS = sorted((ROOT / "locks").glob("*.txt"))
ENTRY = re.compile(r"(?P<requirement>[^\\]+) \\\n(    --hash=sha256:[0-9a-f]{64}( \\)?\n)+")


def entries(lock: Path) -> list[str]:
    """The lines of each package, its hashes included."""
    text = lock.read_text(encoding="utf-8")
    return [part for part in re.split(r"^(?=\w)", text, flags=re.MULTILINE) if "==" in part]


def locked(python: str) -> dict[str, Version]:
    """The versions that Python `python` gets on Linux, by the package's name."""
    environment = {**default_environment(), "sys_platform": "linux", "platform_machine": "x86_64"}
    environment |= {"python_version": python, "python_full_version": f"{python}.0"}
    found: dict[str, Version] = {}
    for lock in LOCKS:
        for entry in entries(lock):
            requirement = Requirement(entry.split(" \\")[0])
            if requirement.marker is None or requirement.marker.evaluate(environment):
                assert requirement.name not in found, f"{requirement.name} is locked twice"
                (pin,) = requirement.specifier
                found[requirement.name] = Version(pin.version)
    return found


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_locked_package_has_one_version_and_its_hashes(lock: Path):
    assert entries(lock)
    for entry in entries(lock):
        match = ENTRY.fullmatch(entry)
        assert match, entry
        (pin,) = Requirement(match["requirement"]).specifier
        assert pin.operator == "=="
        assert not pin.version.endswith("*")


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_the_locks_hold_what_the_project_names_within_its_bounds(python: str):
    versions = locked(python)
    for requirement in map(Requirement, NAMED):
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            assert versions[canonicalize_name(requirement.name)] in requirement.specifier


def test_the_table_of_versions_is_that_of_the_bounds_and_the_locks():
    """Rows: package, the oldest that was tested, the locked one, the newest that was tested."""
    text = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\S+) \| (\S+ \| \S+ \| \S+) \|$", text, flags=re.MULTILINE))
    bounds = {canonicalize_name(named.name): named for named in map(Requirement, NAMED)}
    versions = locked("3.12")
    for package in ("torch", "torchvision", "diffusers", "transformers", "peft", "accelerate"):
        oldest, tested, newest = rows[package].split(" | ")
        (bound,) = bounds[package].specifier
        assert Version(oldest).release[:2] == Version(bound.version).release[:2], package
        assert Version(tested) == versions[package], package
        assert Version(newest) >= versions[package], package
    assert rows["ComfyUI"].split(" | ")[0] == min(RELEASES, key=Version)
    assert rows["ComfyUI"].split(" | ")[1] == VERSION


def test_the_oldest_comfyui_is_one_that_make_versions_tests():
    assert PYPROJECT["tool"]["comfy"]["requires-comfyui"] == f">={min(RELEASES, key=Version)}"
