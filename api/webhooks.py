"""Every type of event: the shape of its data and an example, for the `webhooks` part of the API's description."""

from __future__ import annotations

from typing import Any

import msgspec

from api.samples import PUBLISHED, PingDocument, previous_state_of, sample_data, sequence_of
from ledger.documents import (
    ChainNoticeDocument,
    ChainReorgDocument,
    DepositDocument,
    EventDocument,
    WithdrawalDocument,
    time_of,
)
from ledger.endpoints import EndpointDocument
from ledger.watches import WatchDocument


def data_type_of(event_type: str) -> Any:  # noqa: ANN401 (a type, known only at run time)
    """The document that is the `data` of an event."""
    single = {"watch.activated": WatchDocument, "chain.reorged": ChainReorgDocument}
    families = {
        "deposit": DepositDocument,
        "withdrawal": WithdrawalDocument,
        "test": PingDocument,
        "chain": ChainNoticeDocument,
        "endpoint": EndpointDocument,
    }
    return single.get(event_type) or families[event_type.split(".")[0]]


def example_of(event_type: str) -> Any:  # noqa: ANN401 (plain JSON)
    """An event of that type, as its receiver reads it."""
    document: EventDocument[object] = EventDocument(
        id="evt_018d0025040c7d1e8f2a3b4c5d6e7f80",
        type=event_type,
        timestamp=time_of(PUBLISHED.now),
        livemode=not event_type.startswith("test."),
        sequence=sequence_of(event_type),
        previous_state=previous_state_of(event_type),
        data=sample_data(event_type, PUBLISHED),
    )
    return msgspec.to_builtins(document)


def event_name_of(event_type: str) -> str:
    """Name of an event's schema, e.g. `DepositConfirmedEvent`."""
    return "".join(word.capitalize() for word in event_type.split(".")) + "Event"
