"""Processes that are cheap to start.

One process has torch and the other libraries imported; each process of a test is a fork of it, and
starts in a tenth of a second where one of its own imports for five to ten. It is a real process, to
be killed or stopped, with an environment, a working directory and files of its own, and it imports
this package anew, so that an import that fails or a circle of them shows as it would elsewhere.
What a library reads from the environment while it is imported is as it was when the tests began.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from pathlib import Path
from typing import Any

HYPERNOISE = "from hypernoise.training.cli import main; main()"
"""Code of the `hypernoise` command."""
PACKAGE = __name__.partition(".")[0]
SECONDS = 300  # a process that takes longer hangs
_BEGAN_WITH = dict(os.environ)


class Process:
    """`python -c CODE ARGUMENTS` under way, in the manner of subprocess.Popen."""

    def __init__(self, pid: int, output: Path) -> None:
        self.pid, self.returncode, self._output = pid, None, output

    def poll(self) -> int | None:
        """Minus the number of the signal, where one ended it; None: it still runs."""
        if self.returncode is None:
            self.returncode = _server().ask(poll=self.pid)
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = SECONDS) -> int:
        """Its exit status; it is killed, and this fails, where it does not end in time."""
        last = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > last:
                self.send_signal(signal.SIGKILL)
                raise AssertionError(f"no end after {seconds} s: {self.stderr[-2000:]}")
            time.sleep(0.01)
        return self.returncode

    @property
    def stdout(self) -> str:
        """What it has written so far."""
        return self._read("out")

    @property
    def stderr(self) -> str:
        return self._read("err")

    def _read(self, suffix: str) -> str:
        return self._output.with_suffix(f".{suffix}").read_bytes().decode(errors="surrogateescape")


def start(code: str, *arguments: object, cwd: object = None, **variables: str) -> Process:
    """Starts `python -c CODE ARGUMENTS`, without a terminal and with nothing to read.

    Args:
        variables: of its environment, besides those that this process has now.
    """
    argv = ["-c", *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200", **variables}
    return _server().start(
        code=code, argv=argv, cwd=str(cwd or Path.cwd()), environment=environment
    )


def places(processes: int) -> list[dict[str, str]]:
    """What torchrun would tell each of the processes of a run: variables of its environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def start_all(processes: int, code: str, *arguments: object, **options: Any) -> list[Process]:
    """Processes that share a run, by their rank; one alone is told of no others."""
    found = places(processes) if processes > 1 else [{}]
    return [start(code, *arguments, **options, **place) for place in found]


def run(
    code: str, *arguments: object, processes: int = 1, **options: Any
) -> subprocess.CompletedProcess[str]:
    """What one process, or several that share a run, came to; of several all output in turn."""
    running = start_all(processes, code, *arguments, **options)
    codes = [process.wait() for process in running]
    return subprocess.CompletedProcess(
        ["-c", *map(str, arguments)],
        next(filter(None, codes), 0),
        "".join(process.stdout for process in running),
        "".join(process.stderr for process in running),
    )


def hypernoise(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """The `hypernoise` command with these arguments; options as those of `run`."""
    return run(HYPERNOISE, *arguments, **options)


class _Server:
    """The process that is forked, for as long as the tests run."""

    def __init__(self) -> None:
        self._outputs, self._count = tempfile.TemporaryDirectory(prefix="hypernoise-tests-"), 0
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**_BEGAN_WITH, "HF_HUB_OFFLINE": "1"},
        )

    def start(self, **process: Any) -> Process:
        self._count += 1
        output = Path(self._outputs.name, str(self._count))
        for suffix in (".out", ".err"):
            output.with_suffix(suffix).touch()  # else it is read before there is one
        return Process(self.ask(**process, output=str(output)), output)

    def ask(self, **request: Any) -> Any:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process that others are forked from has ended"
        return json.loads(answer)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._outputs.cleanup()


@functools.cache
def _server() -> _Server:
    server = _Server()
    atexit.register(server.close)
    return server


def serve() -> None:
    """Answers one request a line, and at the end of them kills what still runs."""
    ended: list[int] = []
    atexit.register(_leave, ended)  # registered first, it is called last
    _import_everything()
    gc.freeze()
    running = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
            running.discard(pid)
        elif not (answer := os.fork()):
            return _become(**request, ended=ended)
        else:
            running.add(answer)
        print(json.dumps(answer), flush=True)
    for pid in running:
        os.kill(pid, signal.SIGKILL)


def _import_everything() -> None:
    """All modules of the commands, and what they import late."""
    import torch
    from tqdm import tqdm

    from hypernoise import training
    from hypernoise.hypernoise_core.rewards import load_rewards
    from hypernoise.training.pipelines import load_pipeline

    torch.set_num_threads(1)  # no thread may run when a process forks
    tqdm.monitor_interval = 0
    for module in pkgutil.walk_packages(training.__path__, f"{training.__name__}."):
        importlib.import_module(module.name)
    state = torch.get_rng_state()
    load_pipeline("tiny-sprint")
    load_rewards({"tiny-preference": 1.0})
    torch.set_rng_state(state)


def _become(
    code: str, argv: list[str], cwd: str, environment: dict[str, str], output: str, ended: list[int]
) -> None:
    """In the fork: is `python -c CODE` from here on; its exit status goes into `ended`."""
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # the usual one is shared: a killed process would keep it
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate((os.devnull, f"{output}.out", f"{output}.err")):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        opened = os.open(path, flags, 0o666)
        os.dup2(opened, number)
        os.close(opened)
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]
    sys.argv = argv
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        exec(compile(code, "<string>", "exec"), vars(main))  # noqa: S102
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise  # Python prints it
        ended.append(end.code or 0)
    else:
        ended.append(0)


def _leave(ended: list[int]) -> None:
    """Ends a fork without taking apart all that is imported, which takes half a second."""
    if ended:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(*ended)
