"""Names that are given twice in one object of a body: JSON allows them, and readers differ in which one they take."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from api.problems import FieldProblem


@dataclass(frozen=True, slots=True)
class _Repeated:
    """Stands for an object in which a name is given twice."""

    name: str


def repeated_name(body: bytes) -> FieldProblem | None:
    """The first name that is given twice within one object of a JSON document, innermost objects first, with a pointer to
    it: whoever checked the one and whoever acts by the other would not speak of the same (RFC 8259, section 4)."""
    found: list[_Repeated] = []

    def _keep(pairs: list[tuple[str, Any]]) -> object:
        known = dict(pairs)
        if len(known) == len(pairs):
            return known
        counts = Counter(name for name, _ in pairs)
        found.append(_Repeated(next(name for name, count in counts.items() if count > 1)))
        return found[-1]

    document = json.loads(body, object_pairs_hook=_keep, parse_int=str, parse_float=str)
    if not found:
        return None
    pointer = next((path for path, part in _parts(document, "") if part is found[0]), "")
    return FieldProblem(f"{pointer}/{escaped(found[0].name)}", "the name is given more than once")


def _parts(value: object, path: str) -> Iterator[tuple[str, object]]:
    yield path, value
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _parts(part, f"{path}/{escaped(name)}")
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _parts(part, f"{path}/{index}")


def escaped(step: str) -> str:
    """A step of a JSON pointer (RFC 6901, section 3)."""
    return step.replace("~", "~0").replace("/", "~1")
