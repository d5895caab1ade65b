"""What the notifier sends, as a receiver in Node judges it: by each secret and each key of a rotation."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from ledger.secrets import new_endpoint_secret
from tests.fakes.javascript import judge
from tests.fakes.receiver import ReceivedRequest, running_receiver
from tests.integration.notifier.conftest import Post
from tests.integration.notifier.test_rotation import public_keys, rotate


def known_with(request: ReceivedRequest, **known: str) -> dict[str, Any]:
    """One request, and what its receiver knows, as `judge.mjs` reads it."""
    return {"headers": request.headers, "body": request.body.decode(), **known}


async def test_during_a_rotation_node_accepts_by_either_secret_and_either_key_and_after_it_by_the_new_ones(
    post: Post,
) -> None:
    async with running_receiver() as receiver, post.dispatching():
        endpoint_id = await post.add_endpoint(receiver)
        [old], [old_key] = receiver.secrets, await public_keys(post, endpoint_id)
        await rotate(post, endpoint_id)
        await post.record("dep_1")
        await receiver.wait_until("it is told during the grace", lambda: len(receiver.requests) == 1)
        newest = await rotate(post, endpoint_id, timedelta())
        await post.record("dep_2")
        await receiver.wait_until("it is told after it", lambda: len(receiver.requests) == 2)
    during, after = receiver.requests
    asked = {
        "the old secret, during": known_with(during, secret=old),
        "the old key, during": known_with(during, public_key=old_key),
        "another's secret": known_with(during, secret=new_endpoint_secret()),
        "the old secret, after": known_with(after, secret=old),
        "the old key, after": known_with(after, public_key=old_key),
        "the newest secret, after": known_with(after, secret=newest.secret),
        "the newest key, after": known_with(after, public_key=newest.public_key),
    }
    verdicts, _ = judge(list(asked.values()), [])
    accepted = {name for name, verdict in zip(asked, verdicts, strict=True) if verdict == ""}
    assert accepted == {
        "the old secret, during", "the old key, during", "the newest secret, after", "the newest key, after"
    }  # fmt: skip
