"""What is wrong with a part of the input, in our own words: what it is, what it has to be, and which choices there are.

Pure. The JSON library says where reading stopped and why, for programmers of itself ("Invalid enum value 'newest'"). Here
that is turned into a sentence for whoever made the request, with what the type at that place would take.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import msgspec.inspect

_NAMES = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "datetime": "a time such as 2026-11-01T00:00:00Z",
    "null": "null",
}
_PATTERNS = {
    r"^[^\x00]*$": "it holds a NUL character, which cannot be kept",
    r"^[^\x00-\x1f\x7f\x85\u2028\u2029\u202a-\u202e\u2066-\u2069]*$": (
        "it holds a line end or another control character; give one line of text"
    ),
    r"^[0-9A-Za-z_]+$": "an id has letters, digits and _ only",
    r"^ep_[0-9A-Za-z_]+$": "an endpoint's id begins with ep_",
    r"^evt_[0-9A-Za-z_]+$": "an event's id begins with evt_",
    r"^(dep|wdr)_[0-9A-Za-z_]+$": "the id of a deposit or withdrawal begins with dep_ or wdr_",
    r"^[a-zA-Z0-9]{3,8}:[-_a-zA-Z0-9]{1,32}/[a-zA-Z0-9]{3,8}:[-.%a-zA-Z0-9]{1,128}$": (
        "an asset is named as in asset.id: eip155:1/slip44:60, or eip155:1/erc20: and the contract; never by its symbol"
    ),
}
_OTHER_PATTERN = "it is not formed as the description in /openapi.json says"
_SHOWN_MAX = 60
_PLURALS = {"str": "characters", "array": "entries", "object": "entries"}


def sentence_of(said: str, type_: Any, steps: Sequence[str], *, is_query: bool) -> str:  # noqa: ANN401
    """Our sentence for what msgspec `said` of what the steps lead to in a `type_`. What has no other words stays."""
    place = _part_at(_info_of(type_), steps)
    for pattern, say in _SENTENCES:
        match = pattern.fullmatch(said)
        if match is not None:
            return say(match, place, is_query)
    return said


@cache
def _info_of(type_: Any) -> Any:  # noqa: ANN401
    return msgspec.inspect.type_info(type_)


def _part_at(found: Any, steps: Sequence[str]) -> Any:  # noqa: ANN401
    """The type to which the steps of a path lead; None where they lead nowhere."""
    for step in steps:
        whole = _bare(found)
        if isinstance(whole, msgspec.inspect.StructType):
            found = next((field.type for field in whole.fields if field.encode_name == step), None)
        elif isinstance(whole, msgspec.inspect.ListType):
            found = whole.item_type
        else:
            found = getattr(whole, "value_type", None)
    return _bare(found)


def _bare(found: Any) -> Any:  # noqa: ANN401
    """A type without its description, and without null beside it."""
    while isinstance(found, msgspec.inspect.Metadata | msgspec.inspect.UnionType):
        if isinstance(found, msgspec.inspect.Metadata):
            found = found.type
        else:
            found = next(one for one in found.types if not isinstance(one, msgspec.inspect.NoneType))
    return found


def _unknown(match: re.Match[str], place: Any, is_query: bool) -> str:  # noqa: ANN401
    what = "parameter" if is_query else "field"
    names = [field.encode_name for field in getattr(place, "fields", ())]
    there = f"there are: {', '.join(names)}" if names else "there is none here"
    near = [name for name in names if match["name"].removesuffix("_id").removesuffix("_ids") == name]
    hint = f"; {near[0]} is meant?" if near else ""
    return f"there is no {what} {_shown(match['name'])}; {there}{hint}"


def _choices(match: re.Match[str], place: Any, is_query: bool) -> str:  # noqa: ANN401
    choices = [str(one.value) for one in getattr(place, "cls", ())]
    return f"{_shown(match['value'])} is none of the choices: {', '.join(choices)}"


def _expected(match: re.Match[str], place: Any, is_query: bool) -> str:  # noqa: ANN401
    wanted = " or ".join(_NAMES.get(name, name) for name in match["wanted"].split(" | "))
    return (
        f"it has to be {wanted}"
        if is_query
        else f"it has to be {wanted}, and is {_NAMES.get(match['got'], match['got'])}"
    )


def _length(match: re.Match[str], place: Any, is_query: bool) -> str:  # noqa: ANN401
    bound, unit = int(match["bound"]), _PLURALS[match["type"]]
    if match["sign"] == "<=":
        return f"it has more than {bound} {unit}"
    return "it is empty" if bound == 1 else f"it has fewer than {bound} {unit}"


def _size(match: re.Match[str], place: Any, is_query: bool) -> str:  # noqa: ANN401
    return f"it has to be at {'most' if match['sign'] == '<=' else 'least'} {match['bound']}"


def _form(match: re.Match[str], place: Any, is_query: bool) -> str:  # noqa: ANN401
    return _PATTERNS.get(getattr(place, "pattern", ""), _OTHER_PATTERN)


def _always(sentence: str) -> Callable[[re.Match[str], Any, bool], str]:
    return lambda match, place, is_query: sentence


def _missing(match: re.Match[str], place: Any, is_query: bool) -> str:  # noqa: ANN401
    return "it is missing, and has to be given"


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_MAX else text[:_SHOWN_MAX] + "...")


_SENTENCES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str], Any, bool], str]], ...] = tuple(
    (re.compile(pattern, re.DOTALL), say)
    for pattern, say in (
        (r"Object contains unknown field `(?P<name>.*)`", _unknown),
        (r"Object missing required field `.*`", _missing),
        (r"Invalid enum value '?(?P<value>.*?)'?", _choices),
        (r"Invalid RFC3339 encoded datetime", _always("a time is written as in RFC 3339: 2026-11-01T00:00:00Z")),
        (r"Expected `datetime` with a timezone component", _always("a time needs its zone: 2026-11-01T00:00:00Z")),
        (r"Expected `(?P<type>str|array|object)` of length (?P<sign><=|>=) (?P<bound>\d+)", _length),
        (r"Expected `(?:int|float)` (?P<sign><=|>=) (?P<bound>-?\d+)(?:\.0)?", _size),
        (r"Expected `str` matching regex '.*'", _form),
        (r"Expected `(?P<wanted>[^`]*)`, got `(?P<got>[^`]*)`", _expected),
    )
)
