"""The declared mutants: which defence each takes out, where, and which tests must see it."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
DECLARED = Path(__file__).parent / "declared.toml"
DOCUMENT = ROOT / "docs/completeness.md"


@dataclass(frozen=True)
class Mutant:
    """One defence, and how it is taken out."""

    name: str
    rows: tuple[str, ...]
    """The rows of `docs/completeness.md` that it belongs to, such as `M1`."""
    defence: str
    """What it does, as the document says it."""
    file: str
    old: str
    """The text of the defence, which the file has exactly once."""
    new: str
    tests: tuple[str, ...]
    """Node ids (without parameters) of the tests that must fail without it."""

    def applied_to(self, text: str) -> str:
        """The file without the defence. Raises `ValueError` when the declared text is not there exactly once."""
        if text.count(self.old) != 1:
            raise ValueError(f"{self.name}: {self.file} has the declared text {text.count(self.old)} times, not once")
        return text.replace(self.old, self.new)


def read_mutants() -> list[Mutant]:
    """All of them, in the order of the file."""
    return [
        Mutant(
            row["name"],
            tuple(row["rows"]),
            row["defence"],
            row["file"],
            row["old"].removesuffix("\n"),
            row["new"].removesuffix("\n"),
            tuple(row["tests"]),
        )
        for row in tomllib.loads(DECLARED.read_text())["mutant"]
    ]


def rows_told() -> dict[str, str]:
    """The rows of the document by their id, each with the table of its defences as it stands there."""
    parts = re.split(r"^### (\w+)\. .*$", DOCUMENT.read_text(), flags=re.MULTILINE)
    return {row: _table_in(text) for row, text in zip(parts[1::2], parts[2::2], strict=True)}


def _table_in(text: str) -> str:
    found = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return found[0] if found else ""


def table_of(row: str, mutants: list[Mutant]) -> str:
    """The table of a row's defences as the document has to have it."""
    lines = ["| mutant | defence | in | test |", "|---|---|---|---|"]
    for mutant in mutants:
        if row in mutant.rows:
            tests = "<br>".join(f"`{test}`" for test in mutant.tests)
            lines.append(f"| `{mutant.name}` | {mutant.defence} | `{mutant.file}` | {tests} |")
    return "\n".join(lines) + "\n"
