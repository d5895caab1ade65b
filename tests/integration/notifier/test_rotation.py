"""A rotation as a receiver sees it, with the public library and with a public key."""

from __future__ import annotations

import re
from base64 import b64decode
from datetime import UTC, datetime, timedelta

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import select
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from ledger.database import transaction
from ledger.endpoint_secrets import NewSecret, find_public_keys, rotate_secret
from ledger.ids import EndpointId
from ledger.schema import endpoint_secrets
from notifier.maintenance import forget_secrets
from tests.fakes.receiver import ReceivedRequest, running_receiver
from tests.integration.notifier.conftest import TENANT, Post

DAY = timedelta(days=1)


def is_signed_with(request: ReceivedRequest, secret: str) -> bool:
    """Whether the public library accepts the request when it knows this secret alone."""
    try:
        Webhook(secret).verify(request.body, request.headers)
    except WebhookVerificationError:
        return False
    return True


def is_signed_for(request: ReceivedRequest, public_key: str) -> bool:
    """Whether one of its `v1a` signatures is of this key."""
    key = Ed25519PublicKey.from_public_bytes(b64decode(public_key.removeprefix("whpk_")))
    signed = b".".join((request.event_id.encode(), request.timestamp.encode(), request.body))
    for signature in re.findall(r"(?:^| )v1a,(\S+)", request.headers["webhook-signature"]):
        try:
            key.verify(b64decode(signature), signed)
        except InvalidSignature:
            continue
        return True
    return False


async def rotate(post: Post, endpoint_id: EndpointId, grace: timedelta = DAY) -> NewSecret:
    """As the API does it."""
    async with transaction(post.engine) as connection:
        made = await rotate_secret(connection, post.secret_box, TENANT, endpoint_id, grace, datetime.now(UTC))
    assert made is not None
    return made


async def public_keys(post: Post, endpoint_id: EndpointId) -> list[str]:
    """Those that are valid now."""
    async with transaction(post.engine) as connection:
        found = await find_public_keys(connection, post.secret_box, TENANT, endpoint_id, datetime.now(UTC))
    return [key.public_key for key in found]


async def test_during_a_rotation_a_receiver_with_either_secret_or_either_key_accepts(post: Post) -> None:
    async with running_receiver() as receiver, post.dispatching():
        endpoint_id = await post.add_endpoint(receiver)
        [old], [old_key] = receiver.secrets, await public_keys(post, endpoint_id)
        new = await rotate(post, endpoint_id)
        await post.record("dep_1")
        await receiver.wait_until("it is told", lambda: len(receiver.requests) == 1)
        [during] = receiver.requests
        assert is_signed_with(during, old) and is_signed_with(during, new.secret)
        assert is_signed_for(during, old_key) and is_signed_for(during, new.public_key)

        await post.execute("UPDATE endpoint_secrets SET expires_at = now() WHERE expires_at IS NOT NULL")
        await post.record("dep_2")
        await receiver.wait_until("it is told again", lambda: len(receiver.requests) == 2)
        after = receiver.requests[1]
        assert is_signed_with(after, new.secret) and not is_signed_with(after, old)
        assert is_signed_for(after, new.public_key) and not is_signed_for(after, old_key)


async def test_a_revoked_secret_signs_nothing_that_is_sent_afterwards(post: Post) -> None:
    async with running_receiver() as receiver, post.dispatching():
        endpoint_id = await post.add_endpoint(receiver)
        [old] = receiver.secrets
        await rotate(post, endpoint_id)
        new = await rotate(post, endpoint_id, timedelta())
        await post.record("dep_1")
        await receiver.wait_until("it is told", lambda: len(receiver.requests) == 1)
        [request] = receiver.requests
        assert is_signed_with(request, new.secret) and not is_signed_with(request, old)
        assert [one.partition(",")[0] for one in request.headers["webhook-signature"].split()] == ["v1", "v1a"]


async def test_an_endpoint_from_before_there_were_keys_is_signed_for_with_its_secret_alone(post: Post) -> None:
    async with running_receiver() as receiver, post.dispatching():
        endpoint_id = await post.add_endpoint(receiver)
        await post.execute("UPDATE endpoint_secrets SET sealed_signing_key = NULL, public_key = NULL")
        await post.record("dep_1")
        await receiver.wait_until("it is told", lambda: len(receiver.requests) == 1)
        assert receiver.requests[0].is_signed and "v1a," not in receiver.requests[0].headers["webhook-signature"]

        [key] = await public_keys(post, endpoint_id)
        await post.record("dep_2")
        await receiver.wait_until("it is told again", lambda: len(receiver.requests) == 2)
        assert receiver.requests[1].is_signed and is_signed_for(receiver.requests[1], key)


async def test_housekeeping_deletes_what_has_ended_and_nothing_else(post: Post) -> None:
    async with running_receiver() as receiver:
        endpoint_id = await post.add_endpoint(receiver)
    await rotate(post, endpoint_id)
    await rotate(post, endpoint_id)
    ended = """UPDATE endpoint_secrets SET expires_at = now() - interval '1 s'
        WHERE id = (SELECT min(id) FROM endpoint_secrets)"""
    assert await post.execute(ended) == 1
    await forget_secrets(post.engine)
    async with transaction(post.engine) as connection:
        left = (await connection.execute(select(endpoint_secrets.c.expires_at))).scalars().all()
    assert len(left) == 2 and left.count(None) == 1
