"""The mutants of `bin/test --mutants` fit the code and the suite as they are now."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests import mutants
from tests.mutants import CHECKOUT, MUTANTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_what_a_mutant_replaces_is_there_and_what_it_makes_is_python(mutant: Mutant, tmp_path: Path) -> None:
    shutil.copytree(CHECKOUT / "cassata", tmp_path / "cassata")

    mutants.apply(mutant, tmp_path)

    for change in mutant.changes:
        compile((tmp_path / change.file).read_text(), change.file, "exec")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_tests_that_notice_a_mutant_exist(mutant: Mutant) -> None:
    for test in mutant.tests:
        file, name = test.split("::")
        assert re.search(rf"^def {name.split('[')[0]}\(", (CHECKOUT / file).read_text(), re.MULTILINE), test


def test_a_mutant_whose_text_is_gone_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("pass\n")
    gone = mutants.mutant("gone", mutants.Change("module.py", "something else", ""), tests="tests/unit/test_mutants.py::test_x")

    with pytest.raises(ValueError, match=r"finds its text 0 times in module\.py"):
        mutants.apply(gone, tmp_path)


@pytest.mark.parametrize(
    ("code", "said", "word"),
    [
        (1, "1 failed", "red"),
        (0, "3 passed, 1 skipped", "SURVIVED"),
        (0, "2 skipped", "skipped"),
        (4, "not found", "NOT RUN"),
        (2, "", "NOT RUN"),
    ],
)
def test_only_a_test_that_ran_and_failed_counts_as_red(code: int, said: str, word: str) -> None:
    assert mutants.word_for(code, said) == word
