"""`python -m chainbell.demo [--keep]`: watch a deposit go from a local chain to a verified webhook."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eth_account import Account
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from chainbell.demo.anvil import AnvilError, anvil
from chainbell.demo.contracts import TOKEN_CODE
from chainbell.demo.merchant import Merchant, running_merchant
from chainbell.demo.service import DemoFailed, Service, running_service
from chainbell.demo.story import CUSTOMER, Story, chain_settings, deploy, make_cast

_COLOURS = {
    "detected": "cyan", "confirmed": "green", "finalized": "bold green", "reorged": "yellow", "reversed": "red",
    "moved": "magenta", "failed": "red",
}  # fmt: skip

console = Console(highlight=False)


def say(heading: str, text: str) -> None:
    """What happens on the chain."""
    console.print(f"\n[bold]{heading}[/bold]  {text}")


def show_event(event: dict[str, Any]) -> None:
    """One verified webhook, as the merchant takes it."""
    subject, verb = event["type"].split(".")
    data = event["data"]
    height = data["block"]["height"] if data.get("block") else "-"
    confirmations = data["confirmations"]
    console.print(
        f"  [green]verified[/green]  {subject:<10} [{_COLOURS.get(verb, 'white')}]{verb:<9}[/]"
        f"  {data['watch']['reference']:<10} {data['amount']:>5} {data['asset']['symbol']:<3}"
        f"  [dim]no. {event['sequence']}  block {height}, {confirmations['current']}/{confirmations['required']}"
        f"  {data['proof']['level']}[/dim]",
        soft_wrap=True,
    )


def show_books(books: dict[str, str], merchant: Merchant) -> None:
    """The end of the story."""
    table = Table("order", "credited", title="the merchant's books", title_justify="left")
    for order, amount in sorted(books.items()):
        table.add_row(order, amount)
    console.print()
    console.print(table)
    console.print(
        f"{len(merchant.events)} webhooks, every signature verified, every sequence without a gap; "
        "books, API and event feed agree."
    )


async def tell(keep: bool) -> None:
    """Start everything, play every act, check the books; with `keep`, stay until interrupted."""
    with _directory() as directory:
        async with anvil(extra_args=["--slots-in-an-epoch", "4"]) as node, running_merchant(show_event) as merchant:
            token = await deploy(node, Account.from_key(CUSTOMER), TOKEN_CODE)
            say("starting", "an embedded Postgres, a local EVM node, Chainbell, and a sample merchant")
            async with running_service(directory, chain_settings(node.url, token)) as service:
                story = Story(node, service, merchant, make_cast(token), say)
                for act in (story.register, story.native_deposit, story.token_deposit, story.internal_deposit,
                            story.withdrawal, story.reorg, story.finality):  # fmt: skip
                    await act()
                show_books(await story.reconcile(), merchant)
                if keep:
                    await _stay(service, node.url, merchant)


@contextmanager
def _directory() -> Iterator[Path]:
    """A place for settings, logs and the database, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="chainbell-demo-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # as root, the database runs as another user and has to get through here
        yield directory


async def _stay(service: Service, node_url: str, merchant: Merchant) -> None:
    lines = (
        f"API        {service.url}   (documented at /openapi.json)\nkey        {service.key}\n"
        f"settings   {service.config}\nnode       {node_url}\nmerchant   {merchant.url}"
    )
    console.print(Panel(lines, title="still running; Ctrl-C ends it", expand=False))
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()


def main() -> None:
    """Exit status 0 when the story is complete, 1 with the reason when it is not."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave everything running and print URLs and a key")
    keep = parser.parse_args().keep
    console.print(Panel("[bold]Chainbell[/bold]: a deposit goes from a chain to a verified webhook", expand=False))
    try:
        asyncio.run(tell(keep))
    except (DemoFailed, AnvilError, TimeoutError) as error:
        console.print(f"\n[red bold]the demo failed[/red bold]: {error}")
        sys.exit(1)
    console.print("\n[green bold]the story is complete[/green bold]")


main()
