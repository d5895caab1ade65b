"""A check of ours for schemathesis, which imports this module: valid data may be refused, but only for what it means.

A schema says how a request is formed. It cannot say which chains there are, which checksum an address has, or where a
cursor comes from. Anything else that the description allows has to be taken, or the description is wrong.
"""

from __future__ import annotations

import json
import re
from typing import Any

import schemathesis
from schemathesis.checks import CheckContext
from schemathesis.core.transport import Response

MEANINGS = {
    *("/chain", "/address", "/after", "/url", "/from", "/to", "/since", "/until", "/event_types/*", "/event_type"),
    *("/accept_reorg_to", "/endpoint", "/event", "/entry", "/grace_seconds", "/wait"),
    *("/watches/*/chain", "/watches/*/address", "/watches/*/start_height", "/watches/*/metadata"),
}
"""Parts whose form is described and whose meaning is not, as pointers with * for an index."""

CODES = {
    *("not_found", "missing_scope", "invalid_cursor", "job_ended", "job_needed", "not_halted", "idempotency_mismatch"),
    "method_not_allowed",
}
"""Refusals that are no matter of form."""


_WITH_A_POINT = re.compile(r"a whole number( or null)?, and is a number$")
"""JSON Schema takes 5.0 for an integer; here a number with a point is none, since above 2^53 it may lie."""


@schemathesis.check
def refuses_valid_data_for_its_meaning_only(
    _: CheckContext, response: Response, case: schemathesis.Case[Any]
) -> bool | None:
    """Whatever is formed as described is accepted, or refused for what it says."""
    if case.meta is None or not case.meta.generation.mode.is_positive or response.status_code < 400:
        return None
    problem = json.loads(response.content)
    if problem["code"] in CODES:
        return None
    errors = problem.get("errors", [])
    assert problem["code"] == "invalid_request", f"valid data was refused with {problem['code']}"
    assert errors, f"valid data was refused without a pointer: {problem['detail']}"
    pointers = {
        re.sub(r"/\d+", "/*", error["pointer"]) for error in errors if not _WITH_A_POINT.search(error["detail"])
    }
    assert pointers <= MEANINGS, f"valid data was refused for its form: {problem['detail']}"
    return None
