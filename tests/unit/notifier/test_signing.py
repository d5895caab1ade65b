"""What is signed and what is not. Published vectors and scenarios: `tests/integration/test_receivers.py`."""

from __future__ import annotations

import json
from base64 import b64encode
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from ledger.secrets import SIGNING_KEY_PREFIX as PRIVATE_PREFIX
from ledger.secrets import new_endpoint_secret
from notifier.errors import CannotSign
from notifier.signing import webhook_headers


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


def test_signatures_of_secrets_come_before_those_of_keys_and_the_current_ones_first() -> None:
    old, new = new_endpoint_secret(), new_endpoint_secret()
    old_key, new_key = (PRIVATE_PREFIX + b64encode(bytes([number]) * 32).decode() for number in (1, 2))
    at = datetime.fromtimestamp(1614265330, UTC)

    def alone(secret: str) -> str:
        signature = webhook_headers("evt_1", at, b"{}", [new, secret])["webhook-signature"]
        return signature.split(" ")[1]

    signature = webhook_headers("evt_1", at, b"{}", [new, new_key, old, old_key])["webhook-signature"]
    assert signature.split(" ")[1:] == [alone(old), alone(new_key), alone(old_key)]
    assert [one.partition(",")[0] for one in signature.split(" ")] == ["v1", "v1", "v1a", "v1a"]


@pytest.mark.parametrize("key", ["", "!!!", b64encode(bytes(31)).decode(), b64encode(bytes(64)).decode()])
def test_a_private_key_that_is_none_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(CannotSign) as caught:
        webhook_headers("evt_1", datetime.now(UTC), b"{}", [new_endpoint_secret(), PRIVATE_PREFIX + key])
    assert not key or key not in str(caught.value)


def test_a_private_key_alone_signs_nothing() -> None:
    with pytest.raises(CannotSign):
        webhook_headers("evt_1", datetime.now(UTC), b"{}", [PRIVATE_PREFIX + b64encode(bytes(32)).decode()])
