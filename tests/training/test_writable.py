"""A place for results is tried before the work, and left as it was."""

from functools import partial
from pathlib import Path

import pytest

from hypernoise.training.writable import check_file, check_folder


def test_a_place_that_can_be_written_stays_as_it_is(tmp_path):
    check_folder(tmp_path / "a" / "b", "--save_dir")
    check_file(tmp_path / "c.csv", "--csv", replace=False)
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_a_folder_is_to_be_made_is_named_with_the_flag(tmp_path):
    (tmp_path / "file").write_text("mine")
    a_file = partial(check_file, replace=True)
    for check, place in ((check_folder, "file"), (check_folder, "file/a"), (a_file, "file/a")):
        with pytest.raises(NotADirectoryError, match="--out .*file is a file.*another --out"):
            check(tmp_path / place, "--out")


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    with pytest.raises(IsADirectoryError, match=r"--csv .* is a folder; give a file"):
        check_file(tmp_path, "--csv", replace=True)


def test_a_place_that_takes_no_files_is_named_with_the_reason():
    with pytest.raises(OSError, match=r"--out /proc/a: /proc is not writable \(.*\)"):
        check_folder(Path("/proc/a"), "--out")


def test_a_file_that_is_there_is_replaced_only_where_it_may_be(tmp_path):
    (file := tmp_path / "a").write_text("mine")
    check_file(file, "--out", replace=True)
    with pytest.raises(FileExistsError, match="--out .*a already exists: .* add --force"):
        check_file(file, "--out", replace=False)
    assert file.read_text() == "mine"
