"""The declared mutants, the code, the tests and `docs/completeness.md` say the same (`make mutants` tries them)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.mutants.declared import ROOT, Mutant, read_mutants, rows_told, table_of
from tests.mutants.trial import Ran, Verdict, try_mutant

MUTANTS = read_mutants()
MISSED, DOUBLED = 17, 8
"""Ways to lose a deposit and to double or invent one: all of them have to have a defence."""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_defence_stands_where_it_is_declared_and_can_be_taken_out(mutant: Mutant) -> None:
    whole = (ROOT / mutant.file).read_text()
    mutated = mutant.applied_to(whole)
    assert mutated != whole
    if mutant.file.endswith(".py"):
        compile(mutated, mutant.file, "exec")


def test_a_text_that_is_not_there_once_is_no_mutant() -> None:
    mutant = Mutant("m", ("M1",), "", "f.py", "if x:", "if y:", ())
    assert mutant.applied_to("if x: pass") == "if y: pass"
    for text in ("", "if x: pass; if x:"):
        with pytest.raises(ValueError, match="not once"):
            mutant.applied_to(text)


def test_names_are_distinct() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_every_named_test_exists() -> None:
    named = {test for mutant in MUTANTS for test in mutant.tests}
    missing = [test for test in named if not _is_there(*test.split("::"))]
    assert missing == []
    assert all(mutant.tests for mutant in MUTANTS)


def _is_there(file: str, name: str) -> bool:
    path = ROOT / file
    return path.exists() and re.search(rf"^(async )?def {name}\(", path.read_text(), re.MULTILINE) is not None


def test_every_row_has_a_defence_that_is_taken_out() -> None:
    rows = {row for mutant in MUTANTS for row in mutant.rows}
    wanted = {f"M{number}" for number in range(1, MISSED + 1)} | {f"D{number}" for number in range(1, DOUBLED + 1)}
    assert wanted <= rows
    assert set(rows_told()) == rows


@pytest.mark.parametrize("row", sorted({row for mutant in MUTANTS for row in mutant.rows}))
def test_the_document_has_the_table_that_the_mutants_give(row: str) -> None:
    assert rows_told()[row] == table_of(row, MUTANTS)


def test_every_mutant_is_of_our_own_code() -> None:
    rooms = ("chains", "ledger", "indexer", "notifier", "api", "docs")
    assert {Path(mutant.file).parts[0] for mutant in MUTANTS} <= set(rooms)


# --- the trial itself -------------------------------------------------------------------------------------------------


def test_a_test_has_failed_by_its_whole_name_and_by_any_of_its_parameters() -> None:
    ran = Ran(
        1, "FAILED t.py::test_a - AssertionError\nFAILED t.py::test_b[x y] - boom\nFAILED t.py::test_c_too\n", 0.1
    )
    names = ("t.py::test_a", "t.py::test_b", "t.py::test_c", "t.py::test_c_too", "py::test_a")
    assert [ran.has_failed(name) for name in names] == [True, True, False, True, False]


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        ("n > 0", "n >= 0", Verdict.KILLED),
        ("n > 0", "0 < n", Verdict.SURVIVED),
        ("n > 0", "n >", Verdict.BROKEN),
        ("n > 1", "n > 2", Verdict.BROKEN),
    ],
)
def test_a_mutant_is_killed_only_by_a_named_test_that_ran_and_failed(
    tmp_path: Path, old: str, new: str, verdict: Verdict
) -> None:
    module = tmp_path / "counting.py"
    module.write_text("def counts(n: int) -> bool:\n    return n > 0\n")
    (tmp_path / "test_counting.py").write_text(
        "from counting import counts\n\n\ndef test_zero_does_not_count() -> None:\n    assert not counts(0)\n"
    )
    mutant = Mutant("m", ("M1",), "", "counting.py", old, new, ("test_counting.py::test_zero_does_not_count",))
    assert try_mutant(tmp_path, mutant, 100.0).verdict is verdict
    assert module.read_text().endswith("return n > 0\n")
