"""Everything that is wrong with the form of an input, not the first of it alone.

Pure. The JSON library stops where reading fails. What it refused is looked at again here, part by part: each field of an
object and each row of a list by itself, down to what is wrong in it. What is well formed costs nothing of this.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec

from api.problems import ERRORS_MAX, Faults, FieldProblem
from api.repeated import escaped
from api.sentences import sentence_of

_PATH = re.compile(r"^(?P<detail>.*?)(?: - at (?:key in )?`\$(?P<path>[^`]*)`)?$", re.DOTALL)
_STEP = re.compile(r"\.(?P<name>[^.\[\]]+)|\[(?P<index>\d+)\]|\[\.\.\.\]")


@dataclass(frozen=True, slots=True)
class _Said:
    """A sentence of the library's about what the steps lead to; `name` is of a field that is missing there, or unknown."""

    steps: tuple[str, ...]
    detail: str
    name: str | None = None


def faults_of(value: object, type_: Any, message: str, *, is_query: bool = False) -> Faults:  # noqa: ANN401
    """What keeps a value, as JSON or a query has it, from being a `type_`, of which the library said `message`. Only what is
    shown is put into words: a body may hold very many faults."""
    found = _walk(value, type_, (), is_strict=not is_query)
    shown = [_problem_of(one, type_, is_query=is_query) for one in islice(found, ERRORS_MAX)]
    # Of a name that is given twice the library may have refused the one that is not in the value.
    shown = shown or [_problem_of(_said_of(message, ()), type_, is_query=is_query)]
    return Faults(shown, len(shown) + sum(1 for _ in found))


def _problem_of(said: _Said, type_: Any, *, is_query: bool) -> FieldProblem:  # noqa: ANN401
    steps = said.steps if said.name is None else (*said.steps, said.name)
    pointer = "".join(f"/{escaped(step)}" for step in steps)
    return FieldProblem(pointer, sentence_of(said.detail, type_, said.steps, is_query=is_query))


def _said_of(message: str, steps: tuple[str, ...]) -> _Said:
    """A sentence such as "Expected `int`, got `str` - at `$[...].size`", which says where below `steps` it is about."""
    match = _PATH.match(message)
    detail, path = (match["detail"], match["path"] or "") if match else (message, "")
    return _Said((*steps, *(step["name"] or step["index"] or "*" for step in _STEP.finditer(path))), detail)


def _walk(value: object, type_: Any, steps: tuple[str, ...], *, is_strict: bool) -> Iterator[_Said]:  # noqa: ANN401
    said = _refusal_of(value, type_, is_strict=is_strict)
    if said is None:
        return
    inner, is_empty = _bare(type_), True
    for found in _walk_parts(value, inner, steps, said, is_strict=is_strict):
        yield found
        is_empty = False
    if is_empty:  # its parts are well formed: the fault is its own
        yield _said_of(said, steps)


def _refusal_of(value: object, type_: Any, *, is_strict: bool) -> str | None:  # noqa: ANN401
    try:
        msgspec.convert(value, type_, strict=is_strict)
    except msgspec.ValidationError as error:
        return str(error)
    return None


def _walk_parts(
    value: object,
    inner: Any,  # noqa: ANN401
    steps: tuple[str, ...],
    said: str,
    *,
    is_strict: bool,
) -> Iterator[_Said]:
    if isinstance(value, dict) and isinstance(inner, type) and issubclass(inner, msgspec.Struct):
        fields = _fields_of(inner)
        for name, part in value.items():
            if name in fields:
                yield from _walk(part, fields[name].type, (*steps, name), is_strict=is_strict)
            elif inner.__struct_config__.forbid_unknown_fields:
                yield _Said(steps, f"Object contains unknown field `{name}`", name)
        for name, field in fields.items():
            if field.required and name not in value:
                yield _Said(steps, f"Object missing required field `{name}`", name)
    elif isinstance(value, list) and get_origin(inner) is list and not said.startswith("Expected `array` of length"):
        [item] = get_args(inner)
        for index, part in enumerate(value):
            yield from _walk(part, item, (*steps, str(index)), is_strict=is_strict)


@cache
def _fields_of(type_: type[msgspec.Struct]) -> dict[str, msgspec.structs.FieldInfo]:
    return {field.encode_name: field for field in msgspec.structs.fields(type_)}


@cache
def _bare(type_: Any) -> Any:  # noqa: ANN401
    """A type without its description, and without null beside it."""
    if get_origin(type_) is Annotated:
        return _bare(get_args(type_)[0])
    if get_origin(type_) in (Union, UnionType):
        others = [one for one in get_args(type_) if one not in (NoneType, msgspec.UnsetType)]
        return _bare(others[0]) if len(others) == 1 else type_
    return type_
