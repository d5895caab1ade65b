"""Changing the master key as an operator does it: a merchant notices nothing, and a wrong key is refused at start."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from tests.fakes.receiver import Receiver, running_receiver
from tests.outside.installation import LOCAL_ENDPOINTS, MASTER_KEY, Installation, Tenant, installed

NEW_KEY = base64.b64encode(b"n" * 32).decode()
PREVIOUS = "CHAINBELL_SECRETS__PREVIOUS_MASTER_KEYS"


async def restart(installation: Installation, *roles: str, master_key: str, previous: tuple[str, ...] = ()) -> None:
    """These roles with these keys, in place of those that run."""
    installation.environment |= {"CHAINBELL_MASTER_KEY": master_key, PREVIOUS: json.dumps(previous)}
    for role in roles:
        if role in installation.processes:
            await installation.stop(role)
        await installation.start(role)
    await installation.ready()


async def require_told(shop: Tenant, endpoint_id: str, receiver: Receiver) -> None:
    """A test event arrives, signed with the secret that the merchant has had from the beginning."""
    before = len(receiver.requests)
    await shop.call("POST", f"/v1/endpoints/{endpoint_id}/test", {})
    await receiver.wait_until("the test event comes", lambda: len(receiver.requests) > before, deadline_s=60)
    assert receiver.requests[-1].is_signed


async def test_a_master_key_is_changed_unnoticed_a_wrong_one_refused_and_a_lost_one_done_without(
    database_url: str, tmp_path: Path
) -> None:
    async with running_receiver() as receiver, installed(tmp_path, database_url, LOCAL_ENDPOINTS) as installation:
        await restart(installation, "serve", "notify", master_key=MASTER_KEY)
        shop = await installation.tenant("shop")
        endpoint = await shop.open_endpoint(receiver)
        path = f"/v1/endpoints/{endpoint['id']}"
        public_key = await shop.call("GET", f"{path}/public-key")
        await require_told(shop, endpoint["id"], receiver)
        cursor = (await shop.call("GET", "/v1/events"))["next_cursor"]

        await restart(installation, "serve", "notify", master_key=NEW_KEY, previous=(MASTER_KEY,))
        done = await installation.command("secrets", "rewrap")
        assert (done["rewrapped"], done["left"], done["needed_key_ids"]) == (1, 0, [])
        await require_told(shop, endpoint["id"], receiver)

        await restart(installation, "serve", master_key=NEW_KEY)
        assert await shop.call("GET", f"{path}/public-key") == public_key
        assert len((await shop.call("GET", f"/v1/events?after={cursor}"))["data"]) == 1
        await installation.stop("serve")

        installation.environment["CHAINBELL_MASTER_KEY"] = MASTER_KEY
        refused = await installation.attempt("notify")
        assert (refused.status, refused.output) == (1, ""), refused
        assert refused.sentence.startswith("chainbell: secrets.master_key (id ")
        assert (
            f"is not this database's: its secrets are sealed under the key with the id {done['key_id']};"
            in refused.sentence
        )
        assert "Traceback" not in refused.complaint

        assert (await installation.command("secrets", "abandon", done["key_id"]))["secrets_lost"] == 1
        await restart(installation, "serve", master_key=MASTER_KEY)
        assert (await shop.call("POST", f"{path}/rotate-secret", {"grace_seconds": 0}))["secret"].startswith("whsec_")
