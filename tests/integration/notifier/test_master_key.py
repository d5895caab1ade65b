"""Changing the master key as an operator does it: a merchant notices nothing, and a wrong key is refused at start."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from chainbell.roles import notify
from chainbell.settings_model import DatabaseSettings, NotifierSettings, SecretsSettings, Settings
from tests.fakes.receiver import Receiver, running_receiver
from tests.integration.notifier.conftest import MASTER_KEY, Post
from tests.outside.installation import installed

OLD, NEW = b64encode(MASTER_KEY).decode(), b64encode(b"n" * 32).decode()


@asynccontextmanager
async def notifying(post: Post, directory: Path, master_key: str, *previous: str) -> AsyncIterator[None]:
    """A notifier with these keys, until the block ends."""
    settings = Settings(
        database=DatabaseSettings(url=post.url, data_dir=directory),
        secrets=SecretsSettings(master_key=master_key, previous_master_keys=previous),
        notifier=NotifierSettings.model_validate({"allow_http": True, "allow_private": ["127.0.0.0/8"]}),
    )
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(notify(settings, stop))
        try:
            yield
        finally:
            stop.set()


async def require_told(post: Post, receiver: Receiver) -> None:
    """An event arrives, signed with the secret that the merchant has had from the beginning."""
    before = len(receiver.requests)
    await post.record(f"dep_{before}")
    await receiver.wait_until("it is told", lambda: len(receiver.requests) > before)
    assert receiver.requests[-1].is_signed


async def test_a_master_key_is_changed_unnoticed_a_wrong_one_refused_and_a_lost_one_done_without(
    post: Post, tmp_path: Path
) -> None:
    async with running_receiver() as receiver, installed(tmp_path, post.url) as installation:
        await post.add_endpoint(receiver)
        async with notifying(post, tmp_path, OLD):
            await require_told(post, receiver)
        async with notifying(post, tmp_path, NEW, OLD):
            installation.environment |= {
                "CHAINBELL_MASTER_KEY": NEW,
                "CHAINBELL_SECRETS__PREVIOUS_MASTER_KEYS": json.dumps([OLD]),
            }
            done = await installation.command("secrets", "rewrap")
            assert (done["rewrapped"], done["left"], done["needed_key_ids"]) == (1, 0, [])
            await require_told(post, receiver)
        async with notifying(post, tmp_path, NEW):
            await require_told(post, receiver)

        installation.environment |= {
            "CHAINBELL_MASTER_KEY": OLD,
            "CHAINBELL_SECRETS__PREVIOUS_MASTER_KEYS": "[]",
        }
        refused = await installation.attempt("notify")
        assert (refused.status, refused.output) == (1, ""), refused
        assert refused.sentence.startswith("chainbell: secrets.master_key (id ")
        why = f"is not this database's: its secrets are sealed under the key with the id {done['key_id']};"
        assert why in refused.sentence and "Traceback" not in refused.complaint
        assert (await installation.command("secrets", "abandon", done["key_id"]))["secrets_lost"] == 1
