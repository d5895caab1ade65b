"""`/v1/endpoints/{id}/rotate-secret` and `/public-key`: what an endpoint's webhooks are signed with, and verified by."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import msgspec
from msgspec import Meta

from api.auditing import audit
from api.problems import invalid, not_found
from api.routes import Call, Route
from ledger.documents import time_of
from ledger.endpoint_health import glance_at
from ledger.endpoint_secrets import (
    GRACE_DEFAULT,
    GRACE_MAX,
    LIVE_MAX,
    TooManySecrets,
    find_public_keys,
    rotate_secret,
)
from ledger.endpoints import EndpointDocument, endpoint_document, find_endpoint
from ledger.ids import EndpointId
from ledger.words import Time


class RotateOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long the earlier secrets stay valid beside the new one; 0 revokes them at once."""

    grace_seconds: Annotated[int, Meta(ge=0, le=int(GRACE_MAX.total_seconds()))] = int(GRACE_DEFAULT.total_seconds())


class RotatedEndpointDocument(EndpointDocument, frozen=True, tag="endpoint"):
    """An endpoint with its new signing secret, which is shown only here. `earlier_secrets_end_at` is when the last of
    those before it ends, null where there were none."""

    secret: str
    public_key: str
    earlier_secrets_end_at: Time | None


class PublicKeyDocument(msgspec.Struct, frozen=True):
    """An ed25519 key that signatures `v1a` are verified with. `expires_at` is the end of a rotation's grace, null for the
    current one."""

    public_key: str
    created_at: Time
    expires_at: Time | None


class PublicKeysDocument(msgspec.Struct, frozen=True, tag_field="object", tag="public_keys"):
    """The current key, and all that are valid now, the current one first: several while a rotation's grace lasts."""

    endpoint_id: str
    public_key: str
    public_keys: list[PublicKeyDocument]


async def rotate_my_secret(call: Call[None, RotateOrder]) -> RotatedEndpointDocument:
    """Rotate an endpoint's secret

    Makes a new signing secret (`whsec_...`), shown only in this answer, and a new ed25519 key beside it. Until the grace is
    over every webhook is signed with the earlier ones too; with `grace_seconds` 0 they are revoked at once."""
    endpoint = await find_endpoint(call.connection, call.tenant_id, EndpointId(call.path["id"]))
    if endpoint is None:
        raise not_found("endpoint")
    grace = timedelta(seconds=call.body.grace_seconds)
    try:
        made = await rotate_secret(
            call.connection, call.services.secret_box, call.tenant_id, endpoint.id, grace, call.now
        )
    except TooManySecrets as error:
        raise invalid(
            "/grace_seconds",
            f"{LIVE_MAX} secrets of this endpoint are valid already, which is the most; wait until"
            f" {time_of(error.first_ends_at)}, when the first of them ends, or send 0 to revoke all of them",
        ) from None
    if made is None:
        raise not_found("endpoint")
    document = endpoint_document(
        endpoint, call.now, await glance_at(call.connection, call.tenant_id, endpoint.id, call.now)
    )
    await audit(call, "endpoint.secret_rotated", endpoint.id, grace_seconds=call.body.grace_seconds)
    return RotatedEndpointDocument(
        **msgspec.structs.asdict(document),
        secret=made.secret,
        public_key=made.public_key,
        earlier_secrets_end_at=time_of(made.earlier_end_at) if made.earlier_end_at else None,
    )


async def get_public_keys(call: Call[None, None]) -> PublicKeysDocument:
    """Get an endpoint's public keys

    The ed25519 keys (`whpk_...`) that verify its signatures `v1a`."""
    endpoint = await find_endpoint(call.connection, call.tenant_id, EndpointId(call.path["id"]))
    if endpoint is None:
        raise not_found("endpoint")
    found = await find_public_keys(call.connection, call.services.secret_box, call.tenant_id, endpoint.id, call.now)
    keys = [
        PublicKeyDocument(key.public_key, time_of(key.created_at), time_of(key.expires_at) if key.expires_at else None)
        for key in found
    ]
    return PublicKeysDocument(endpoint.id, keys[0].public_key, keys)


ROUTES = (
    Route("POST", "/v1/endpoints/{id}/rotate-secret", "endpoints:write", rotate_my_secret),
    Route("GET", "/v1/endpoints/{id}/public-key", "endpoints:read", get_public_keys),
)
