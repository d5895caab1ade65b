"""What a payments backend does with the client that a generator made: `python using_client.py URL KEY`.

Run by the generator's own interpreter, with the generated package `chainbell_client` beside it; prints what it saw as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from chainbell_client import AuthenticatedClient
from chainbell_client.api.deposits import get_deposit, list_deposits
from chainbell_client.api.events import read_feed
from chainbell_client.api.watches import create_watches
from chainbell_client.models import (
    DepositConfirmedEvent,
    DepositDetectedEvent,
    DepositDocument,
    FeedPage,
    NewWatches,
    PageDepositDocument,
    ProblemDocument,
    WatchAnswers,
    WatchInput,
)

PAGE = 7


def main(url: str, key: str) -> dict[str, Any]:
    """Register, list to the end, ask for one, and read the feed to its end."""
    client = AuthenticatedClient(base_url=url, token=key, raise_on_unexpected_status=True)
    rows = [WatchInput(chain="evm", address=f"0x{number:040x}", reference=f"order-{number}") for number in range(1, 4)]
    made = create_watches.sync(client=client, body=NewWatches(watches=rows), idempotency_key="generated-1")
    again = create_watches.sync(client=client, body=NewWatches(watches=rows))
    bad = create_watches.sync(client=client, body=NewWatches(watches=[WatchInput(chain="evm", address="0x12")]))
    assert isinstance(made, WatchAnswers)
    assert isinstance(again, WatchAnswers)
    assert isinstance(bad, ProblemDocument)
    deposits = list(_all_deposits(client))
    one = get_deposit.sync(deposits[0].id, client=client)
    assert isinstance(one, DepositDocument)
    return {
        "watches": [[row.reference, row.status] for row in made.data],
        "again": [[row.id, row.status] for row in again.data],
        "refusal": [bad.code, [error.pointer for error in bad.errors or ()]],
        "deposits": [[deposit.id, deposit.state, deposit.amount_atomic] for deposit in deposits],
        "one": one.to_dict(),
        "events": list(_all_events(client)),
    }


def _all_deposits(client: AuthenticatedClient) -> Iterator[DepositDocument]:
    page = list_deposits.sync(client=client, limit=PAGE)
    while isinstance(page, PageDepositDocument):
        yield from page.data
        if page.next_cursor is None:
            return
        page = list_deposits.sync(client=client, limit=PAGE, cursor=page.next_cursor)
    raise TypeError(f"no page of deposits but {page!r}")


def _all_events(client: AuthenticatedClient) -> Iterator[list[object]]:
    page = read_feed.sync(client=client, limit=PAGE)
    while isinstance(page, FeedPage):
        for event in page.data:
            assert isinstance(event, DepositDetectedEvent | DepositConfirmedEvent)
            yield [event.type_, event.data.id, event.sequence]
        if not page.data:
            return
        page = read_feed.sync(client=client, limit=PAGE, after=page.next_cursor)
    raise TypeError(f"no page of events but {page!r}")


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
