"""Every way in which the API says no, as RFC 9457 problems. `docs/problems.md` has a section for each code.

A refusal is raised as `Refused` anywhere below the middleware, which turns it into the answer. Nothing internal is ever
in one: a fault of ours says no more than its request id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from ledger.redaction import hide_secrets

ERRORS_MAX = 1_000
"""Faults of one input that an answer shows; how many there are it says of all."""

MEDIA_TYPE = "application/problem+json"


class Code(StrEnum):
    """Stable names of problems, for programs."""

    BAD_REQUEST = "bad_request"
    INVALID_JSON = "invalid_json"
    INVALID_CURSOR = "invalid_cursor"
    INVALID_IDEMPOTENCY_KEY = "invalid_idempotency_key"
    MISSING_KEY = "missing_key"
    MALFORMED_KEY = "malformed_key"
    INVALID_KEY = "invalid_key"
    MISSING_SCOPE = "missing_scope"
    WRONG_ADDRESS = "wrong_address"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    REQUEST_TIMEOUT = "request_timeout"
    IDEMPOTENCY_IN_PROGRESS = "idempotency_in_progress"
    JOB_ENDED = "job_ended"
    JOB_NEEDED = "job_needed"
    HOLD_UNFINISHED = "hold_unfinished"
    NOT_HALTED = "not_halted"
    BODY_TOO_LARGE = "body_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    INVALID_REQUEST = "invalid_request"
    IDEMPOTENCY_MISMATCH = "idempotency_mismatch"
    RATE_LIMITED = "rate_limited"
    HEADERS_TOO_LARGE = "headers_too_large"
    INTERNAL = "internal"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Kind:
    """What all problems of one code share."""

    status: int
    title: str


KINDS: Mapping[Code, Kind] = {
    Code.BAD_REQUEST: Kind(400, "The request is not valid HTTP for this API"),
    Code.INVALID_JSON: Kind(400, "The body is not JSON"),
    Code.INVALID_CURSOR: Kind(400, "The cursor is not one of this list"),
    Code.INVALID_IDEMPOTENCY_KEY: Kind(400, "The Idempotency-Key is not usable"),
    Code.MISSING_KEY: Kind(401, "No API key was sent"),
    Code.MALFORMED_KEY: Kind(401, "The API key is not well formed"),
    Code.INVALID_KEY: Kind(401, "The API key is not valid"),
    Code.MISSING_SCOPE: Kind(403, "The API key lacks a scope"),
    Code.WRONG_ADDRESS: Kind(403, "The API key may not be used from this address"),
    Code.NOT_FOUND: Kind(404, "Not found"),
    Code.METHOD_NOT_ALLOWED: Kind(405, "The method is not allowed here"),
    Code.REQUEST_TIMEOUT: Kind(408, "The request came too slowly"),
    Code.IDEMPOTENCY_IN_PROGRESS: Kind(409, "The first request with this Idempotency-Key is still being answered"),
    Code.JOB_ENDED: Kind(409, "The job has ended"),
    Code.JOB_NEEDED: Kind(409, "The job cannot be cancelled"),
    Code.HOLD_UNFINISHED: Kind(409, "The endpoint's deliveries are still being held"),
    Code.NOT_HALTED: Kind(409, "The chain is not halted"),
    Code.BODY_TOO_LARGE: Kind(413, "The body is too large"),
    Code.UNSUPPORTED_MEDIA_TYPE: Kind(415, "The body has an unsupported type"),
    Code.INVALID_REQUEST: Kind(422, "The request is not valid"),
    Code.IDEMPOTENCY_MISMATCH: Kind(422, "The Idempotency-Key was used for another request"),
    Code.RATE_LIMITED: Kind(429, "The key is used too often"),
    Code.HEADERS_TOO_LARGE: Kind(431, "The headers are too large"),
    Code.INTERNAL: Kind(500, "Something went wrong on our side"),
    Code.UNAVAILABLE: Kind(503, "The service cannot answer at the moment"),
}

CODE_OF_STATUS: Mapping[int, Code] = {
    400: Code.BAD_REQUEST,
    404: Code.NOT_FOUND,
    405: Code.METHOD_NOT_ALLOWED,
    413: Code.BODY_TOO_LARGE,
    415: Code.UNSUPPORTED_MEDIA_TYPE,
}
"""The code for what the HTTP library itself refuses; any other status below 500 is `bad_request`."""


class FieldProblem(msgspec.Struct, frozen=True):
    """What is wrong with one part of the input: `pointer` is a JSON pointer (RFC 6901) into the body, or `/` and the
    name of a query parameter."""

    pointer: str
    detail: str


class ProblemDocument(msgspec.Struct, frozen=True):
    """A refusal (RFC 9457). Decide by `code`; show `detail` to a person; name `request_id` when you ask for help. For bad
    input `errors` shows what is wrong with which part, the first 1,000, and `errors_total` says how much was found."""

    type: str
    title: str
    status: int
    detail: str
    code: Annotated[str, Meta(extra_json_schema={"enum": [one.value for one in Code]})]
    request_id: str
    errors: Annotated[list[FieldProblem], Meta(max_length=ERRORS_MAX)] | msgspec.UnsetType = msgspec.UNSET
    errors_total: int | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True, slots=True)
class Faults:
    """What is wrong with an input: the first `ERRORS_MAX` of it in words, in the input's order, and how much was found."""

    shown: Sequence[FieldProblem]
    total: int


class Refused(Exception):
    """Answer with a problem."""

    def __init__(
        self,
        code: Code,
        detail: str,
        *,
        errors: Sequence[FieldProblem] = (),
        errors_total: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.errors = tuple(errors)
        self.errors_total = len(self.errors) if errors_total is None else errors_total
        self.headers = dict(headers or {})


def invalid(pointer: str, detail: str) -> Refused:
    """A refusal of one part of the input."""
    return Refused(Code.INVALID_REQUEST, f"{pointer}: {detail}", errors=[FieldProblem(pointer, detail)])


class Misformed(Refused):
    """A refusal of a body that is not formed as described, with what it says."""

    def __init__(self, faults: Faults, given: object) -> None:
        super().__init__(Code.INVALID_REQUEST, _sentence_of(faults), errors=faults.shown, errors_total=faults.total)
        self.given = given


def refusal_of(faults: Faults, outcome: str = "") -> Refused:
    """A refusal of everything that is wrong with the input, whose sentence is about the first of it, and the outcome."""
    said = _sentence_of(faults)
    detail = f"{said}; {outcome}" if outcome else said
    return Refused(Code.INVALID_REQUEST, detail, errors=faults.shown, errors_total=faults.total)


def _sentence_of(faults: Faults) -> str:
    first = faults.shown[0]
    said = f"{first.pointer}: {first.detail}" if first.pointer else first.detail
    return said if faults.total == 1 else f"{said}; and {faults.total - 1} more"


def not_found(what: str) -> Refused:
    """A refusal for what is not there, or is another tenant's, which is the same to the one who asks."""
    return Refused(Code.NOT_FOUND, f"there is no such {what}")


def problem_document(refused: Refused, request_id: str) -> ProblemDocument:
    """The refusal as JSON. A sentence may repeat what was sent, but no secret: problems end up in tickets and logs."""
    kind = KINDS[refused.code]
    errors = [FieldProblem(hide_secrets(one.pointer), hide_secrets(one.detail)) for one in refused.errors]
    return ProblemDocument(
        type=f"urn:chainbell:problem:{refused.code}",
        title=kind.title,
        status=kind.status,
        detail=hide_secrets(refused.detail),
        code=refused.code.value,
        request_id=request_id,
        errors=errors or msgspec.UNSET,
        errors_total=refused.errors_total if errors else msgspec.UNSET,
    )
