"""Progress in a terminal, and where nobody watches."""

import fcntl
import os
import struct
import subprocess
import sys
import termios
import time

from tqdm import tqdm

from hypernoise.training import progress
from hypernoise.training.progress import progress_bar

SCRIPT = (
    "from hypernoise.training.progress import progress_bar\n"
    "with progress_bar(total=3, desc='painting', disable=False) as bar:\n    bar.update(3)\n"
)


def test_a_log_file_gets_a_whole_line_now_and_then_and_one_at_the_end(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS", 0.05)
    start = time.monotonic()
    with progress_bar(total=60, desc="painting", unit="wall") as bar:
        for number in range(60):
            time.sleep(0.005)
            bar.update()
            bar.set_postfix_str(f"colour {number}")
            if number == 30:
                tqdm.write("warning: wet", sys.stderr)
    most = (time.monotonic() - start) / 0.05
    text = capsys.readouterr().err
    assert "\r" not in text and "\x1b" not in text and "\n\n" not in text
    lines = text.splitlines()
    assert "warning: wet" in lines
    lines.remove("warning: wet")
    assert 2 <= len(lines) <= most + 1
    assert all(line.startswith("painting: ") and "colour" in line for line in lines)
    assert "100%, 60 of 60" in lines[-1]
    with progress_bar(total=60, desc="painting") as bar:
        bar.update()
    assert capsys.readouterr().err.count("\n") == 1  # too short for more


def test_what_is_hidden_or_has_nothing_to_do_shows_nothing(capsys):
    for options in ({"total": 3, "disable": True}, {"total": 0}):
        with progress_bar(**options) as bar:
            bar.update()
    assert list(progress_bar(range(2), disable=True)) == [0, 1]
    assert capsys.readouterr().err == ""


def test_the_environment_switches_progress_off():
    command = [sys.executable, "-c", SCRIPT]
    for value, expected in (("1", b""), (None, b"painting: 100%, 3 of 3")):
        environment = os.environ | ({"TQDM_DISABLE": value} if value else {})
        result = subprocess.run(command, env=environment, stderr=subprocess.PIPE, check=True)
        assert result.stderr.startswith(expected) and bool(result.stderr) == bool(expected)


def test_a_terminal_gets_a_bar_that_moves():
    end, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    subprocess.run([sys.executable, "-c", SCRIPT], stderr=terminal, check=True)
    os.close(terminal)
    assert b"\rpainting: 100%" in os.read(end, 10_000)
    os.close(end)
