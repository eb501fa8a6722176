"""The exceptions of the package: one base class, and the standard ones that callers expect."""

import ast
import subprocess
import sys
from pathlib import Path

import torch

from hypernoise.hypernoise_core import errors
from hypernoise.hypernoise_core.errors import HypernoiseError
from hypernoise.hypernoise_core.rewards import ensemble

ROOT = Path(__file__).resolve().parents[2]


def test_the_tree_in_the_docstring_is_that_of_the_classes():
    stated = {}
    for line in HypernoiseError.__doc__.splitlines():
        if "──" in line:
            name, _, standard = line.partition("── ")[2].partition(" ")
            stated[name] = standard[1 : standard.index(")")]
    known = vars(errors) | vars(ensemble) | {"torch.OutOfMemoryError": torch.OutOfMemoryError}
    for name, standard in stated.items():
        base = known.get(standard) or vars(errors)["__builtins__"][standard]
        assert issubclass(known[name], HypernoiseError) and issubclass(known[name], base)

    defined = set()
    for folder in ("hypernoise_core", "training"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef) and node.name.endswith("Error"):
                    defined |= {node.name} if node.name[0] != "_" else set()
    assert defined - {"HypernoiseError"} == set(stated)


def test_the_base_class_comes_without_torch(tmp_path):
    """So that a command line can catch it and still answer --help at once."""
    script = "import sys, hypernoise.hypernoise_core.errors; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.stdout.strip() == "False", result.stderr
