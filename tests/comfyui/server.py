"""A real ComfyUI server for the tests, and a client for its HTTP and websocket API."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import websocket

START_SECONDS = 600
RUN_SECONDS = 300


class Refused(ValueError):
    """The server did not accept a graph; the text holds its errors."""


@dataclass
class Run:
    """What one queued graph did."""

    outputs: dict[str, dict] = field(default_factory=dict)  # node id -> what it shows
    executed: list[str] = field(default_factory=list)  # node ids that ran
    cached: list[str] = field(default_factory=list)  # node ids whose result was kept
    error: dict | None = None  # ComfyUI's execution_error message


class ComfyServer:
    """`python main.py --cpu` in a base directory of its own; use it in `with`."""

    def __init__(self, comfyui: Path, base: Path) -> None:
        self.comfyui, self.base = comfyui, base
        self.log_file = base / "server.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"

    def __enter__(self) -> "ComfyServer":
        port = self.address.split(":")[1]
        command = [sys.executable, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", port]
        command += ["--base-directory", str(self.base), "--disable-api-nodes"]
        command += ["--disable-auto-launch", "--database-url", "sqlite:///:memory:"]
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=self.comfyui, env=environment(), stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(f"ComfyUI did not start:\n{self.log()[-4000:]}")
            time.sleep(0.3)
        return self

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def log(self) -> str:
        """Everything the server has written so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str) -> bytes:
        """The body of GET `path`."""
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=60) as answer:
            return answer.read()

    def post(self, path: str, value: object) -> bytes:
        """The body of POST `path` with a value as JSON."""
        request = urllib.request.Request(
            f"http://{self.address}{path}",
            json.dumps(value).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def object_info(self) -> dict[str, dict]:
        """Every node type with its inputs and outputs."""
        return json.loads(self.get("/object_info"))

    def run(self, graph: dict) -> Run:
        """Queue a graph in API format and wait until it has ended.

        Raises:
            Refused: the server found the graph invalid.
        """
        client = uuid.uuid4().hex
        channel = websocket.create_connection(
            f"ws://{self.address}/ws?clientId={client}", timeout=RUN_SECONDS
        )
        try:
            prompt_id = self._queue(graph, client)
            run = _follow(channel, prompt_id)
        finally:
            channel.close()
        run.outputs = self._outputs(prompt_id)
        return run

    def file(self, run: Run, node: str, kind: str) -> Path:
        """The first file that a node of a run saved; kind is "images" or "latents"."""
        saved = run.outputs[node][kind][0]
        return self.base / "output" / saved["subfolder"] / saved["filename"]

    def _outputs(self, prompt_id: str) -> dict[str, dict]:
        """From the history, which the server writes after its last message about a prompt."""
        for _ in range(100):
            history = json.loads(self.get(f"/history/{prompt_id}"))
            if prompt_id in history:
                return history[prompt_id]["outputs"]
            time.sleep(0.1)
        raise RuntimeError(f"prompt {prompt_id} never came into the history")

    def _answers(self) -> bool:
        try:
            self.get("/system_stats")
        except OSError:
            return False
        return True

    def _queue(self, graph: dict, client: str) -> str:
        try:
            queued = self.post("/prompt", {"prompt": graph, "client_id": client})
            return json.loads(queued)["prompt_id"]
        except urllib.error.HTTPError as error:
            raise Refused(error.read().decode()) from error


def environment() -> dict[str, str]:
    """Of a ComfyUI process: no look-ups in the network."""
    return {**os.environ, "HF_HUB_OFFLINE": "1"}


def _follow(channel: websocket.WebSocket, prompt_id: str) -> Run:
    """Read the server's messages until this prompt has ended."""
    run = Run()
    while True:
        message = channel.recv()
        if isinstance(message, bytes):
            continue  # previews
        kind, data = (message := json.loads(message))["type"], message["data"]
        if data.get("prompt_id") != prompt_id:
            continue
        if kind == "execution_cached":
            run.cached = list(data["nodes"])
        elif kind == "executing" and data["node"] is not None:
            run.executed.append(data["node"])
        elif kind == "execution_error":
            run.error = data
        if kind in ("execution_success", "execution_error", "execution_interrupted"):
            return run
