"""The package's `__init__`: lazy for everybody else, loud for ComfyUI."""

import subprocess
import sys
from pathlib import Path

from hypernoise.tests.comfyui.conftest import REPOSITORY


def python(code: str, folder: Path) -> subprocess.CompletedProcess:
    """Run code in a fresh interpreter whose sys.path has `folder`."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )


def test_importing_the_package_imports_nothing_else(tmp_path: Path):
    code = (
        "import sys, hypernoise\n"
        "assert not hasattr(hypernoise, 'NODE_CLASS_MAPPINGS')\n"
        "print([m for m in ('torch', 'comfy', 'hypernoise.nodes') if m in sys.modules])"
    )
    assert python(code, tmp_path).stdout.strip() == "[]"


def test_help_pages_are_where_the_package_says():
    import hypernoise

    assert (REPOSITORY / hypernoise.WEB_DIRECTORY / "docs" / "HyperNoise_Apply.md").is_file()


def test_an_attribute_error_in_the_nodes_is_not_taken_for_a_missing_entry_point(tmp_path: Path):
    """ComfyUI asks `hasattr(module, "comfy_entrypoint")` and would go on without a word."""
    (tmp_path / "comfy_api").mkdir()
    (tmp_path / "comfy_api" / "latest.py").write_text("raise AttributeError('too old')")
    result = python("import hypernoise; hasattr(hypernoise, 'comfy_entrypoint')", tmp_path)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ") and "too old" in last


def test_without_comfyui_the_missing_module_is_named(tmp_path: Path):
    result = python("import hypernoise; hypernoise.comfy_entrypoint", tmp_path)
    assert "No module named 'comfy_api'" in result.stderr
