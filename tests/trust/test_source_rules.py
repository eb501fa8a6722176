"""What the code of this project never does: the Comfy registry's rules for node packs, and ours."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("nodes", "hypernoise_core", "training")
IN_COMFYUI = ("nodes", "hypernoise_core")
FILES = [
    ROOT / "__init__.py",
    *(f for name in FOLDERS for f in sorted((ROOT / name).rglob("*.py"))),
]

NEVER = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.startfile", "os.fork",
    "pickle.load", "pickle.loads", "dill.load", "dill.loads", "marshal.load", "marshal.loads",
    "shelve.open", "joblib.load", "pandas.read_pickle", "yaml.load", "yaml.unsafe_load",
    "torch.hub.load", "importlib.reload", "runpy.run_path", "runpy.run_module", "ctypes.CDLL",
    "codecs.decode", "base64.b64decode", "base64.b85decode", "zlib.decompress", "bytes.fromhex",
    "webbrowser.open", "socket.socket", "urllib.request.urlopen", "requests.get", "requests.post",
}  # fmt: skip
NEVER_BY_PREFIX = ("os.exec", "os.spawn", "pip.", "subprocess.")
NETWORK = {"socket", "requests", "httpx", "aiohttp", "urllib.request", "http.client", "ftplib"}
NETWORK |= {"smtplib", "telnetlib", "websocket"}
PROCESSES = {"subprocess", "multiprocessing", "pty", "pip", "ensurepip"}
NEVER_IMPORTED = NETWORK | PROCESSES | {"dill", "cloudpickle", "marshal", "ctypes"}
ALLOWED_PROCESSES = {"training/evaluation/paraphrases.py"}  # the command that the user names
DOWNLOADS = {"hf_hub_download", "snapshot_download"}
ALLOWED_DOWNLOADS = {  # each behind a switch or a command of the user's
    "hypernoise_core/rewards/weights.py",
    "nodes/sana_sprint/published.py",
}
WRITES = {
    "write_text", "write_bytes", "mkdir", "makedirs", "unlink", "rename", "replace", "rmtree",
    "rmdir", "symlink_to", "hardlink_to", "touch", "chmod", "remove", "savez", "to_csv",
    "save_pretrained", "save_file", "write_atomically", "atomic_writer", "NamedTemporaryFile",
}  # fmt: skip
WRITE_MODES = {a + b + c for a in "wax" for b in ("", "b", "t") for c in ("", "+")} | {"r+", "r+b"}
ALLOWED_WRITES = {
    "nodes/sana_sprint/published.py": {"rename", "unlink"}
}  # inside models/sana_sprint


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def in_comfyui(path: Path) -> bool:
    return name_of(path).startswith(IN_COMFYUI) or path == ROOT / "__init__.py"


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a chain of names, `?.c` of what something else gives."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def calls(path: Path) -> Iterator[tuple[str, dict[str, ast.expr], ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield dotted(node.func), {k.arg: k.value for k in node.keywords if k.arg}, node


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def is_constant(node: ast.AST | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def offences(path: Path) -> Iterator[str]:
    """What a file does against the rules, a sentence each."""
    for name, options, node in calls(path):
        where = f"{name_of(path)}:{node.lineno}: {name}"
        last = name.rpartition(".")[2]
        starts = name == "subprocess.run" and name_of(path) in ALLOWED_PROCESSES
        if name in NEVER or (name.startswith(NEVER_BY_PREFIX) and not starts):
            yield f"{where} is never called"
        if name == "torch.load" and not is_constant(options.get("weights_only"), True):
            yield f"{where} without weights_only=True"
        if "trust_remote_code" in options and not is_constant(options["trust_remote_code"], False):
            yield f"{where} trusts remote code"
        if "shell" in options:
            yield f"{where} with a shell"
        if last in ("load", "load_all") and {"allow_pickle", "Loader"} & options.keys():
            yield f"{where} can unpickle"
        if last in DOWNLOADS and name_of(path) not in ALLOWED_DOWNLOADS:
            yield f"{where} downloads"
        if in_comfyui(path) and last in WRITES and path.parent.name != "hypernoise_core":
            if last == "replace" and not name.startswith("os."):  # of a text, or of a dataclass
                continue
            if last not in ALLOWED_WRITES.get(name_of(path), ()):
                yield f"{where} writes a file"
        if last == "open" and in_comfyui(path):
            given = [*node.args, *options.values()]
            if any(isinstance(a, ast.Constant) and a.value in WRITE_MODES for a in given):
                yield f"{where} writes a file"
    for module in imports(path) & NEVER_IMPORTED:
        if not (module in PROCESSES and name_of(path) in ALLOWED_PROCESSES):
            yield f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_breaks_a_rule(path, tally):
    assert list(offences(path)) == []
    tally("source files").count("clean")


@pytest.mark.parametrize(
    "code",
    [
        "eval('1')", "exec('1')", "compile('1', '', 'exec')", "__import__('os')", "os.system('x')",
        "os.popen('x')", "os.execv('x', [])", "pickle.load(f)", "pickle.loads(b)", "torch.load(p)",
        "torch.load(p, weights_only=False)", "torch.load(p, weights_only=w)",
        "AutoModel.from_pretrained(p, trust_remote_code=True)", "f(shell=True)",
        "import subprocess", "from subprocess import run", "import socket", "import pip",
        "from urllib.request import urlopen", "import requests", "np.load(p, allow_pickle=True)",
        "yaml.load(f, Loader=L)", "snapshot_download(r)", "open('x', 'w')", "p.open('ab')",
        "p.write_text('x')", "os.replace(a, b)", "shutil.rmtree(p)", "base64.b64decode(x)",
        "importlib.reload(m)", "torch.hub.load(r)",
    ],
)  # fmt: skip
def test_the_rules_find_what_they_forbid(code, tmp_path, monkeypatch):
    path = tmp_path / "nodes" / "bad.py"
    path.parent.mkdir()
    path.write_text(code)
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert list(offences(path))


def test_no_file_is_obfuscated_or_hides_characters():
    """Readable lines, no long literals, no invisible or direction-turning characters."""
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert max(map(len, text.splitlines()), default=0) <= 120, path
        hidden = [c for c in text if not (c.isprintable() or c in "\n")]
        assert not hidden, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)):
                longest = max(map(len, node.value.split()), default=0)
                assert longest < 200, f"{path}:{node.lineno}"


IMPORT_WITHOUT_NETWORK = """
import asyncio, socket, sys
def refused(*a, **k): raise AssertionError("the network was asked for")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refused
socket.create_connection = refused
events = []
def watch(event, args):
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"):
        events.append((event, args))
sys.path.insert(0, sys.argv[1])
sys.argv = ["main.py", "--cpu", "--base-directory", sys.argv[2]]
import comfy.options
comfy.options.enable_args_parsing()
import nodes
sys.addaudithook(watch)
folder = sys.argv[3]
assert asyncio.run(nodes.load_custom_node(folder))
ours = [n for n in nodes.NODE_CLASS_MAPPINGS if n.startswith("HyperNoise_")]
for name in ours:
    nodes.NODE_CLASS_MAPPINGS[name].GET_SCHEMA()
    nodes.NODE_CLASS_MAPPINGS[name].INPUT_TYPES()
assert not events, events
print(len(ours), "nodes")
"""


@pytest.mark.slow
@pytest.mark.comfyui
def test_the_nodes_are_imported_and_listed_without_network_or_processes(tmp_path):
    from hypernoise.tests.comfyui.fetch_comfyui import comfyui_path
    from hypernoise.tests.comfyui.server import environment

    node_folder = tmp_path / "custom_nodes" / "ours"
    node_folder.parent.mkdir()
    node_folder.symlink_to(ROOT, True)
    script = IMPORT_WITHOUT_NETWORK.replace("sys.argv[3]", repr(str(node_folder)))
    result = subprocess.run(
        [sys.executable, "-c", script, str(comfyui_path()), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout.strip().endswith("14 nodes")
