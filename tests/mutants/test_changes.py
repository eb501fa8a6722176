"""The lists that `make mutants` tries still belong to the source."""

import ast
from pathlib import Path

import pytest

from hypernoise.tests.mutants.changes import REPOSITORY, read_changes

CHANGES = [change for listed in read_changes().values() for change in listed]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.what)
def test_a_change_alters_what_its_file_does(change):
    text = (REPOSITORY / change.file).read_text(encoding="utf-8")
    before, after = ast.parse(text), ast.parse(change.applied(text))
    assert ast.dump(before) != ast.dump(after)


def test_a_change_is_listed_once():
    assert len({(change.file, change.old, change.new) for change in CHANGES}) == len(CHANGES)


def test_changes_name_tests_that_are_there():
    for test in {test for change in CHANGES for test in change.tests}:
        file, *names = test.split("::")
        text = Path(REPOSITORY / file).read_text(encoding="utf-8")
        for name in names:
            assert name.split("[")[0] in text, test
