"""Who may import whom. The adapter file is the only contact between ComfyUI and training."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hypernoise.hypernoise_core.families import FAMILIES
from hypernoise.hypernoise_core.rewards import REWARDS

ROOT = Path(__file__).resolve().parent.parent
STANDARD = sys.stdlib_module_names | {"tomllib"}  # which Python 3.10 lacks

COMFYUI = {
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "execution",
    "folder_paths",
    "latent_preview",
    "node_helpers",
    "nodes",
    "server",
}
INSTALLED_BY_COMFYUI = {"torch", "numpy", "PIL", "safetensors"}
HEADLESS = {"torchvision", "diffusers", "transformers", "tokenizers", "peft", "accelerate"}
HEADLESS |= {"scipy", "matplotlib", "tqdm", "cyclopts", "open_clip", "filelock", "jinja2"}


@dataclass(frozen=True)
class Layer:
    """What the files of one folder may import.

    Attributes:
        at_import: third-party modules, imported when the file is.
        in_functions: further ones, imported only inside functions.
        layers: the other folders of the package.
    """

    at_import: frozenset[str]
    in_functions: frozenset[str] = frozenset()
    layers: frozenset[str] = frozenset()


def _layer(at_import: set[str], in_functions: set[str] = frozenset(), layers=()) -> Layer:
    return Layer(frozenset(at_import), frozenset(in_functions), frozenset(layers))


# A file belongs to the longest folder here that holds it.
LAYERS = {
    "nodes": _layer(
        INSTALLED_BY_COMFYUI | COMFYUI,
        {"diffusers", "transformers", "huggingface_hub"},
        {"hypernoise_core"},
    ),
    "hypernoise_core": _layer({"torch", "safetensors"}, {"huggingface_hub"}),
    "hypernoise_core/rewards": _layer(
        {"torch", "safetensors"}, {"transformers", "tokenizers", "open_clip", "huggingface_hub"}
    ),
    "training": _layer(
        {"torch", "numpy", "PIL", "safetensors"} | HEADLESS,
        {"datasets", "huggingface_hub", "pyarrow", "tomli", "tomli_w", "torchmetrics"},
        {"hypernoise_core"},
    ),
}


# The rooms of training/ from the top floor down: each may import the ones that are named, and
# itself. "" is training/ without its rooms.
FLOORS = {
    "commands": {"evaluation", "validation", "report", "tiny_world", ""},
    "evaluation": {"report", "tiny_world", ""},
    "validation": {"report", "tiny_world", ""},
    "report": set(),
    "tiny_world": {""},
    "": {"tiny_world"},
}
TOP_ROOMS = {"commands"}  # which training/cli.py sees besides


@dataclass(frozen=True)
class Import:
    line: int
    module: str  # absolute, or with leading dots
    in_function: bool
    for_types: bool  # below `if TYPE_CHECKING:`


def imports_of(tree: ast.AST, in_function: bool = False, for_types: bool = False):
    """Every import statement below `tree`, as one Import for each module named."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, in_function, for_types)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            if node.module is None:  # from . import a, b: each may be a module
                for alias in node.names:
                    yield Import(node.lineno, base + alias.name, in_function, for_types)
            else:
                yield Import(node.lineno, base, in_function, for_types)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports_of(node, True, for_types)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imports_of(node, in_function, True)
        else:
            yield from imports_of(node, in_function, for_types)


def complaints(path: str, source: str) -> Iterator[str]:
    """What in the file at `path` (relative to the root, with slashes) breaks the rules."""
    folders = [name for name in LAYERS if path.startswith(name + "/")]
    layer = LAYERS[max(folders, key=len)]
    own = path.split("/")[0]
    package = path.split("/")[:-1]
    for found in imports_of(ast.parse(source)):
        where = f"{path}:{found.line}: imports {found.module}"
        if found.module.startswith("."):
            level = len(found.module) - len(found.module.lstrip("."))
            if level > len(package) + 1:
                yield f"{where}: leaves the package"
                continue
            inside = package[: len(package) - level + 1] + found.module.lstrip(".").split(".")
            if inside[0] != own and inside[0] not in layer.layers:
                yield f"{where}: {own} may not import {inside[0] or 'the top-level package'}"
            continue
        top = found.module.split(".")[0]
        if top == "hypernoise":
            yield f"{where}: imports inside the package are relative"
        elif top in COMFYUI and top not in layer.at_import:
            yield f"{where}: only nodes may import ComfyUI"
        elif top in STANDARD or top in layer.at_import or found.for_types:
            continue
        elif top not in layer.in_functions:
            yield f"{where}: {own} may not import it"
        elif not found.in_function:
            yield f"{where}: only inside the function that needs it"


FILES = [
    path.relative_to(ROOT).as_posix()
    for folder in sorted({name.split("/")[0] for name in LAYERS})
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def room_of(parts: list[str]) -> str:
    """The room of training/ that a module is in; its path from there on, without a suffix."""
    return parts[0] if parts[0] in FLOORS else ""


def wrong_rooms(path: str, source: str) -> Iterator[str]:
    """What a file of training/ imports from rooms that it may not see."""
    package = path.split("/")[:-1]
    own = room_of(path.split("/")[1:])
    allowed = {own, *FLOORS[own]} | (TOP_ROOMS if path == "training/cli.py" else set())
    for found in imports_of(ast.parse(source)):
        level = len(found.module) - len(found.module.lstrip("."))
        inside = package[: len(package) - level + 1] + found.module.lstrip(".").split(".")
        if level and inside[0] == "training" and (room := room_of(inside[1:])) not in allowed:
            yield f"{path}:{found.line}: imports {found.module}, {own or 'training'} -> {room}"


@pytest.mark.parametrize("path", [path for path in FILES if path.startswith("training/")])
def test_rooms_of_training_import_downwards(path):
    assert list(wrong_rooms(path, (ROOT / path).read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("training/trainer.py", "from .commands.train import Run"),
        ("training/parts.py", "def f():\n    from .evaluation import suite"),
        ("training/report/a.py", "from ..progress import progress_bar"),
        ("training/validation/a.py", "from ..evaluation.metrics import mean"),
        ("training/evaluation/a.py", "from ..commands import train"),
        ("training/tiny_world/recipe/a.py", "from ...report.figures import as_png"),
    ],
)
def test_imports_that_run_up_are_found(path, source):
    assert len(list(wrong_rooms(path, source))) == 1


def imported_files(path: str, files: dict[str, str]) -> set[str]:
    """Those of the files that one of them imports, in functions and for types alone as well."""
    found = set()
    for node in ast.walk(ast.parse(files[path])):
        if not (isinstance(node, ast.ImportFrom) and node.level):
            continue
        base = path.split("/")[: -node.level] + (node.module.split(".") if node.module else [])
        for alias in node.names:
            candidates = [
                "/".join([*base, alias.name]),
                "/".join(base),
            ]  # a module, or a name in it
            paths = [name + end for name in candidates for end in (".py", "/__init__.py")]
            found |= set([known for known in paths if known in files][:1])
    return found - {path}


def files_in_cycles(files: dict[str, str]) -> set[str]:
    """Files that import each other, directly or through others, by path and source."""
    imports = {path: imported_files(path, files) for path in files}
    while True:
        imported = set().union(*imports.values())
        free = {path for path, needed in imports.items() if not needed or path not in imported}
        if not free:
            return set(imports)
        imports = {path: needed - free for path, needed in imports.items() if path not in free}


def test_no_modules_import_each_other():
    files = {path: (ROOT / path).read_text(encoding="utf-8") for path in FILES}
    assert files_in_cycles(files) == set()


def test_cycles_are_found():
    files = {
        "a/one.py": "from .two import x",
        "a/two.py": "def f():\n    from ..b import three",
        "b/three.py": "if TYPE_CHECKING:\n    from ..a.one import y",
        "b/four.py": "from . import three",
        "b/__init__.py": "from .five import z",
        "b/five.py": "from . import four",
    }
    assert files_in_cycles(files) == {"a/one.py", "a/two.py", "b/three.py"}


@pytest.mark.parametrize("path", FILES)
def test_imports_follow_the_layers(path):
    assert list(complaints(path, (ROOT / path).read_text(encoding="utf-8"))) == []


def test_top_level_package_imports_only_the_standard_library():
    found = imports_of(ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8")))
    at_import = {item.module.split(".")[0] for item in found if not item.in_function}
    assert at_import <= STANDARD


# A new family or reward is one file and one line in its registry: nothing else asks for its name.
ROOMS = (
    "hypernoise_core/families/",
    "hypernoise_core/rewards/",
    "hypernoise_core/reward_registry.py",  # the registry, which must not import torch
    "nodes/sana_sprint/",  # the nodes of that family
    "training/tiny_world/recipe/",  # makes the embedded reward
)
MAY_NAME = {
    "nodes/model_folders.py": "the folder that one family's nodes look into",
    "nodes/rewards.py": "words that people search nodes by",
    "training/commands/settings.py": "a reward that the reference calls differently",
    "training/embedded_models.py": "the default reward of the embedded generator",
    "training/published_models.py": "the family of each published model",
    "training/validation/watch.py": "an order of preference among rewards",
}
NAMES = {family.name for family in FAMILIES} | {reward.name for reward in REWARDS}


def names_in(source: str) -> set[str]:
    """The families and rewards that a file names in its code, so not in its docstrings."""
    tree = ast.parse(source)
    alone = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and n not in alone]
    return {node.value for node in texts if isinstance(node.value, str)} & NAMES


def test_families_and_rewards_are_named_in_their_own_rooms_alone():
    others = [path for path in FILES if not path.startswith(ROOMS)]
    found = {path: names_in((ROOT / path).read_text(encoding="utf-8")) for path in others}
    assert {path for path, names in found.items() if names} == set(MAY_NAME)


def test_a_comparison_with_a_name_is_found():
    assert names_in('def f():\n    """flux"""\n    return name == "hps"  # clip') == {"hps"}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("nodes/a.py", "import diffusers"),
        ("nodes/a.py", "def f():\n    import peft"),
        ("nodes/a.py", "from ..training import trainer"),
        ("nodes/sana_sprint/a.py", "from ...training.trainer import train"),
        ("hypernoise_core/a.py", "import diffusers"),
        ("hypernoise_core/a.py", "def f():\n    import diffusers"),
        ("hypernoise_core/a.py", "def f():\n    import folder_paths"),
        ("hypernoise_core/a.py", "from .. import nodes"),
        ("hypernoise_core/families/a.py", "from .... import elsewhere"),
        ("hypernoise_core/rewards/a.py", "import open_clip"),
        ("training/a.py", "import comfy.utils"),
        ("training/a.py", "from ..nodes import hypernetwork"),
        ("training/a.py", "from hypernoise.hypernoise_core import lora"),
        ("training/a.py", "class A:\n    if True:\n        import nodes"),
    ],
)
def test_forbidden_imports_are_found(path, source):
    assert len(list(complaints(path, source))) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("nodes/a.py", "import nodes\nimport comfy.samplers\nfrom ..hypernoise_core import lora"),
        ("nodes/sana_sprint/a.py", "from ..comfy_model import x\nfrom ...hypernoise_core import y"),
        ("nodes/a.py", "def f():\n    import diffusers"),
        ("hypernoise_core/a.py", "if TYPE_CHECKING:\n    import diffusers"),
        ("hypernoise_core/families/a.py", "from ..lora import attach\nfrom . import family"),
        ("hypernoise_core/rewards/a.py", "def load():\n    import open_clip"),
        ("training/a.py", "import diffusers\nfrom ..hypernoise_core import lora"),
    ],
)
def test_allowed_imports_pass(path, source):
    assert list(complaints(path, source)) == []


@pytest.mark.parametrize(
    "module", ["hypernoise", "hypernoise.hypernoise_core", "hypernoise.training.cli"]
)
def test_headless_imports_never_see_comfyui(module, tmp_path):
    """In a fresh process, away from the repository, so that the installed package is imported."""
    script = (
        f"import sys, {module}\n"
        f"print(*sorted({COMFYUI!r} & {{name.split('.')[0] for name in sys.modules}}))\n"
        f"print(*[path for path in sys.path if path == {str(ROOT)!r}])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def test_importing_hypernoise_is_light(tmp_path):
    script = "import sys, hypernoise; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.stdout.strip() == "False", result.stderr


def test_failing_nodes_are_an_import_error(tmp_path):
    """ComfyUI asks with hasattr, which would swallow an AttributeError from inside our nodes."""
    package = tmp_path / "A pack-with.dots"
    (package / "nodes").mkdir(parents=True)
    source = (ROOT / "__init__.py").read_text(encoding="utf-8")
    (package / "__init__.py").write_text(source, encoding="utf-8")
    (package / "nodes" / "__init__.py").write_text("import os\nos.no_such_name\n")
    script = (
        "import importlib.util, sys\n"
        "path = sys.argv[1]\n"
        "name = path.replace('.', '_x_')\n"
        "spec = importlib.util.spec_from_file_location(name, path + '/__init__.py')\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "sys.modules[name] = module\n"
        "spec.loader.exec_module(module)\n"
        "assert not hasattr(module, 'NODE_CLASS_MAPPINGS')\n"
        "try:\n"
        "    hasattr(module, 'comfy_entrypoint')\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(package)], capture_output=True, text=True
    )
    assert "no_such_name" in result.stdout, result.stderr
