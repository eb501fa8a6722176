"""Text as people's programs write it."""

import os
import subprocess
import sys

import pytest

from hypernoise.hypernoise_core.text_file import is_blank, lines, read_text


@pytest.mark.parametrize("content", [b"a\nb\n", b"\xef\xbb\xbfa\r\nb\r\n", b"a\rb\r"])
def test_marks_are_left_out_and_all_lines_end_alike(content, tmp_path):
    (tmp_path / "a.txt").write_bytes(content)
    assert read_text(tmp_path / "a.txt") == "a\nb\n"


def test_other_encodings_are_refused_with_the_line(tmp_path):
    (tmp_path / "a.txt").write_bytes("gut\ngrün".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.txt, line 2: this is not UTF-8"):
        read_text(tmp_path / "a.txt")


def test_a_line_ends_where_people_end_it_and_nowhere_else():
    assert lines("a\nb\r\nc\rd") == ["a", "b", "c", "d"]
    assert lines("a\n\nb\n") == ["a", "", "b"] and lines("") == []
    inside = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"
    assert lines(inside) == [inside]


def test_what_shows_nothing_is_blank():
    for text in ("", " \t\n", "\u200b", "\ufeff\u2060\u00ad", "\u3000\u2028\x07"):
        assert is_blank(text)
    for text in ("a", " . ", "\u200b\u00e9", "\U0001f468\u200d\U0001f469"):
        assert not is_blank(text)


@pytest.mark.skipif(not os.path.exists("/dev/stdin"), reason="a system without /dev")
@pytest.mark.parametrize("source", ["-", "/dev/stdin", "/proc/self/fd/0"])
def test_a_pipe_that_a_shell_has_opened_is_read(source):
    script = "import sys; from pathlib import Path\n"
    script += "from hypernoise.hypernoise_core.text_file import read_text\n"
    script += "print(ascii(read_text(Path(sys.argv[1]))))"
    result = subprocess.run(
        [sys.executable, "-c", script, source], input="ä\r\n".encode(), capture_output=True
    )
    assert result.stdout.strip() == rb"'\xe4\n'", result.stderr


def test_what_might_never_end_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    for name in ("pipe.txt", "zero.txt", ""):
        with pytest.raises(ValueError, match="is not a text file"):
            read_text(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*gone\.txt"):
        read_text(tmp_path / "gone.txt")
