"""`chainbell init`: a settings file with every key, its default, its unit and what follows from it."""

from __future__ import annotations

from typing import Annotated

import typer

from chainbell.cli.context import context_of
from chainbell.errors import UsageError
from chainbell.settings import DEFAULT_FILE
from chains.profile import profile_names

_HEAD = """\
# Settings of Chainbell. Every key is here with its default; a # before a key means that the default holds.
# Each can be set in the environment instead: CHAINBELL_API__LISTEN is api.listen, CHAINBELL_CHAINS__ETHEREUM__PROOF
# is chains.ethereum.proof; lists are written there as JSON. The environment goes before this file.

[database]
# "embedded" runs a PostgreSQL of our own; postgresql://user:secret@host/name uses yours (version 15 or newer).
url = "embedded"
# Where the embedded database and its master key are kept; relative to this file. Losing it loses the ledger.
data_dir = "./chainbell-data"

[secrets]
# 32 bytes in base64, from `openssl rand -base64 32`: encrypts endpoint secrets at rest. "env:NAME" reads a variable.
# Where that is not set, an embedded database gets a key of its own in data_dir (mode 0600), any other is refused.
# Keep a copy: without the key no webhook can be signed.
master_key = "env:CHAINBELL_MASTER_KEY"
# While master keys change: others, written likewise, that secrets may still be sealed under. They are read and not written
# with; `chainbell secrets rewrap` makes them superfluous.
previous_master_keys = []

[api]
# Address and port of the REST server. It speaks plain HTTP: put a TLS proxy before it if others are to reach it.
listen = "127.0.0.1:8080"
# Where /metrics and what only the operator may do are served, apart from the above (default: there too).
# operator_listen = "127.0.0.1:8081"
# Requests a second that each API key may make of each `serve`; twice as many at once. More are answered 429.
rps_per_key = 200
# Networks (CIDR) of proxies before it, as in ["10.1.0.0/16"]: what they say in X-Forwarded-For is believed. It decides about
# keys that are for some addresses only.
trusted_proxies = []

[notifier]
# Endpoints may be plain http://. Whoever sits between then reads and alters every webhook.
allow_http = {allow_http}
# Networks (CIDR) that endpoints may resolve to although they are private, as in ["10.1.0.0/16"]. A tenant chooses the
# URL, so whatever answers there can be reached by tenants.
allow_private = {allow_private}
# Ports that endpoints may use on public addresses; 1 to 65535. 80 may be used too where allow_http is true.
allow_ports = [443, 8443]
"""

_ETHEREUM = """
# One section for each chain. The slug (ethereum) names it everywhere; a shipped profile supplies what is not given.
[chains.ethereum]
# The shipped profile: {profiles}. Default: the one named like the slug.
# profile = "ethereum"
# Needed where the slug is not the profile's own name; checked against every node before anything is read.
# chain_id = "eip155:1"
# Nodes, best first. url: http(s) address of its JSON-RPC, with its key; ws: ws(s) address where it announces new blocks
# (default: none; then polling alone finds them, a little later); name: what logs and metrics call it (default: its
# host); rps: calls a second that it may be asked (default: no limit). Two hosts or more let blocks be agreed upon.
nodes = [
    {{ url = "https://node-a.example/v2/KEY", ws = "wss://node-a.example/v2/KEY", name = "node-a", rps = 25 }},
    {{ url = "https://node-b.example" }},
]
# Where a chain is begun that was never followed: "latest" or a height. Afterwards it goes on where it stopped, always.
start = "latest"
# How a block must prove itself before it is accepted, weakest first: "off", "structure", "bloom", "roots". Default: the
# profile's, "roots" for Ethereum. Below "roots" a node can hide or alter a deposit.
# proof = "roots"
# false: proofs are only observed, to learn what a new chain does. A block that fails one is counted and told of, and taken
# all the same, at the level that it reached: a node that leaves a deposit out is believed.
proof_enforced = true
# Hosts that must name the same block before anything in it is credited: a count, or "auto" (2 where there are two hosts,
# else 1: then one host's word is enough).
quorum = "auto"
# Value that contracts send on, which only traces show. "auto": read once a node traces, and from then on no block is
# taken without traces; "required": no block is ever taken without them; "off": not read.
internal = "auto"
# When a deposit counts as money: a count of confirmations (the block itself is the first), "safe" or "finalized".
# Default: the profile's. Lower is sooner, and likelier to be reversed.
# credit_at = 12
# Seconds between two questions for the newest block, while none is expected. Around the instant at which one is, it is
# asked for more often, on the whole never more than 60 times a minute; below 1.0, 60 / poll_interval_s times. Default:
# the profile's.
# poll_interval_s = 3.0
# Blocks after which one is final, where the chain has no finality tags; a reorg below that halts the chain. Default: the
# profile's.
# finality_depth = 96

# Other credit points; the first rule that fits counts. asset: symbol, contract or asset id; min_amount and max_amount:
# in whole coins, as text, included.
# [[chains.ethereum.credit]]
# asset = "USDC"
# min_amount = "10000"
# max_amount = "1000000000"
# credit_at = "finalized"

# Tokens beyond the profile's. A token that is listed nowhere is never a deposit: anybody can make one and call it USDC.
# [[chains.ethereum.assets]]
# contract = "0x0000000000000000000000000000000000000000"
# symbol = "TST"
# decimals = 18
# Its Transfer event has the old form, with all three arguments in the data. Default: false, as for the three after it.
# unindexed = true
# It wraps the native coin and tells of it by Deposit and Withdrawal events, without a Transfer: WETH9 and its copies.
# wraps_without_transfer = true
# It may keep a part of what it moves; or balances change by themselves. Then the amount that its events tell is not what
# an address holds afterwards: deposits are told with "disposition": "ignore", and never count as money.
# fee_on_transfer = true
# rebasing = true
"""

_ANVIL = """
# The local node of `anvil`, on its usual port. The slug (anvil) names the chain everywhere; its profile has the rest.
[chains.anvil]
nodes = [{ url = "http://127.0.0.1:8545" }]
# "latest" or a height; used only where the chain was never followed before.
start = 0
"""


def template(*, is_demo: bool = False) -> str:
    """The text of a new settings file: for Ethereum with nodes to fill in or, for a demo, for a local Anvil with a
    receiver on the same machine."""
    head = _HEAD.format(
        allow_http="true" if is_demo else "false", allow_private='["127.0.0.0/8", "::1/128"]' if is_demo else "[]"
    )
    return head + (_ANVIL if is_demo else _ETHEREUM.format(profiles=", ".join(profile_names())))


def init(
    context: typer.Context,
    demo: Annotated[bool, typer.Option("--demo", help="For a local Anvil and a receiver on this machine.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented settings file: ./chainbell.toml, or the file that --config names."""
    options = context_of(context)
    file = options.config or DEFAULT_FILE
    try:
        with file.open("w" if force else "x") as out:
            out.write(template(is_demo=demo))
    except FileExistsError:
        raise UsageError(f"{file} is there already; edit it, or replace it with --force") from None
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}") from error
    options.print_object({"file": str(file)}, f"wrote {file}; edit it, then run: chainbell doctor")
