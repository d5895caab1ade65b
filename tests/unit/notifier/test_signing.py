"""Signatures against the published vector, the reference scenarios and the receiver's public library."""

from __future__ import annotations

import json
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from ledger.secrets import new_endpoint_secret
from notifier.errors import CannotSign
from notifier.signing import webhook_headers

DATA = Path(__file__).parents[2] / "data" / "webhooks"
VECTORS: list[dict[str, Any]] = json.loads((DATA / "standard_webhooks_sign.json").read_text())
SCENARIOS: dict[str, Any] = json.loads((DATA / "standard_webhooks_verify_scenarios.json").read_text())
BASE: dict[str, Any] = SCENARIOS["base"]


@pytest.mark.parametrize("vector", VECTORS)
def test_the_published_vector_is_met(vector: dict[str, Any]) -> None:
    at = datetime.fromtimestamp(vector["timestamp"], UTC)
    headers = webhook_headers(vector["id"], at, vector["payload"].encode(), [vector["secret"]])
    assert headers == {
        "webhook-id": vector["id"],
        "webhook-timestamp": str(vector["timestamp"]),
        "webhook-signature": vector["signature"],
    }


def _scenario_headers(case: dict[str, Any]) -> dict[str, str]:
    at = datetime.now(UTC) + timedelta(seconds=case.get("timestamp_offset", 0))
    headers = webhook_headers(BASE["id"], at, BASE["payload"].encode(), [BASE["secret"]])
    valid = headers["webhook-signature"]
    if "signature" in case:
        headers["webhook-signature"] = case["signature"]
    if "signatures" in case:
        headers["webhook-signature"] = " ".join(valid if one == "<valid>" else one for one in case["signatures"])
    for part in ("id", "timestamp", "signature"):
        if case["name"] == f"missing {part} header":
            del headers[f"webhook-{part}"]
    return headers


@pytest.mark.parametrize("case", SCENARIOS["cases"], ids=lambda case: str(case["name"]))
def test_a_receiver_judges_our_headers_as_the_reference_does(case: dict[str, Any]) -> None:
    headers = _scenario_headers(case)
    secret = str(BASE["secret"])
    if "without prefix" in case["name"]:
        secret = secret.removeprefix("whsec_")
    if case.get("secret") == "whsec_":
        with pytest.raises(CannotSign):
            webhook_headers(BASE["id"], datetime.now(UTC), b"{}", [case["secret"]])
    elif case["expect"] == "accept":
        Webhook(secret).verify(BASE["payload"], headers)
    else:
        with pytest.raises((WebhookVerificationError, ValueError)):
            Webhook(secret).verify(BASE["payload"], headers)


@given(st.text(max_size=200))
def test_during_a_rotation_both_secrets_verify_and_no_other(text: str) -> None:
    body = json.dumps({"text": text}).encode()
    old, new, foreign = new_endpoint_secret(), new_endpoint_secret(), new_endpoint_secret()
    headers = webhook_headers("evt_0193", datetime.now(UTC), body, [new, old])
    Webhook(old).verify(body, headers)
    Webhook(new).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(foreign).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(new).verify(body + b" ", headers)


@pytest.mark.parametrize("message_id", ["", "evt.1", "evt\r\nX-Evil: 1", "evt 1", "évt", "e" * 129])
def test_an_id_that_a_header_or_the_scheme_cannot_carry_is_refused(message_id: str) -> None:
    with pytest.raises(CannotSign):
        webhook_headers(message_id, datetime.now(UTC), b"{}", [new_endpoint_secret()])


@pytest.mark.parametrize(
    "secrets",
    [[], ["whsec_"], ["whsec_!!!"], [b64encode(bytes(32)).decode()], ["whsec_" + b64encode(bytes(23)).decode()]],
)
def test_a_secret_that_is_none_is_refused_and_not_shown(secrets: list[str]) -> None:
    with pytest.raises(CannotSign) as caught:
        webhook_headers("evt_1", datetime.now(UTC), b"{}", secrets)
    assert not any(secret.removeprefix("whsec_") in str(caught.value) for secret in secrets if len(secret) > 10)
