"""Claiming as a worker with room for so many deliveries of any endpoint."""

from __future__ import annotations

from ledger.claims import Wanted
from ledger.states import EndpointHealth


def wanting(limit: int) -> Wanted:
    """Room for `limit` deliveries of endpoints that are not failing, all of one if need be."""
    room = {EndpointHealth.ACCEPTING: limit, EndpointHealth.UNPROVEN: limit, EndpointHealth.FAILING: 0}
    return Wanted(room, dict.fromkeys(EndpointHealth, limit))
