"""What the documents say is so: links lead somewhere, commands and routes exist, examples run, tables equal the code."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer.main
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel

import ledger.halts
from api.app import OPEN_ROUTES, ROUTES
from api.webhooks import example_of
from chainbell.cli.app import command_line, global_options_first
from chainbell.settings_model import AssetSettings, ChainSettings, Settings
from chains.evm.address import checksum_of
from chains.profile import ETHER_LOG_EMITTER, load_profile, profile_names
from ledger.documents import event_body
from ledger.ids import EventId
from ledger.secrets import new_endpoint_secret
from ledger.states import ENTRY_TRANSITIONS, EVENT_TYPES, ChainState, EntryState, Reason
from notifier.backoff import SCHEDULE
from notifier.signing import webhook_headers
from tests.fakes.javascript import node_program

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("docker/*.md")])

CONTRACT_METRICS = {
    "chainbell_chain_head_height",
    "chainbell_chain_tip_height",
    "chainbell_chain_lag_seconds",
    "chainbell_chain_halted",
    "chainbell_blocks_total",
    "chainbell_reorgs_total",
    "chainbell_reorg_depth_blocks",
    "chainbell_proof_failures_total",
    "chainbell_node_requests_total",
    "chainbell_events_total",
    "chainbell_deliveries_total",
    "chainbell_delivery_latency_seconds",
    "chainbell_deliveries_due",
    "chainbell_deliveries_held",
}
"""The names that others alert on, as far as there is something behind them."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    document: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def read_blocks(document: Path) -> Iterator[Block]:
    """The fenced blocks of a document, each with the line that it begins on."""
    text = document.read_text()
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Block(document, text.count("\n", 0, found.start()) + 1, found[1], found[2])


def blocks_of(*languages: str) -> list[Block]:
    return [block for document in DOCUMENTS for block in read_blocks(document) if block.language in languages]


def prose_of(document: Path) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors_of(document: Path) -> set[str]:
    """What GitHub makes of a document's headings: lower case, no punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.*)$", prose_of(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def rows_after(document: str, heading: str) -> list[list[str]]:
    """Cells of the first table after a heading, without its head."""
    _, _, rest = (ROOT / document).read_text().partition(f"\n{heading}\n")
    table = re.search(r"(?:^\|.*\n)+", rest, re.MULTILINE)
    assert table is not None, f"{document} has no table after {heading!r}"
    lines = table[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def words_of(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]*)`", cell)


# --- links ------------------------------------------------------------------------------------------------------------


def read_links(document: Path) -> list[str]:
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", prose_of(document)) if "://" not in link]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    broken = []
    for link in read_links(document):
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            broken.append(link)
    assert broken == []


def test_the_runbook_of_a_halt_is_where_the_webhook_says() -> None:
    path, _, anchor = ledger.halts.RUNBOOK.partition("#")
    assert anchor in anchors_of(ROOT / path)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_every_file_of_ours_that_is_named_exists(document: Path) -> None:
    named = re.findall(
        r"`((?:chains|ledger|indexer|notifier|api|chainbell|tests|docs)/[\w/]+\.(?:py|md))`", document.read_text()
    )
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_decision_is_listed() -> None:
    listed = {
        link.partition("/")[2] for link in read_links(ROOT / "docs/architecture.md") if link.startswith("decisions/")
    }
    assert listed == {file.name for file in (ROOT / "docs/decisions").iterdir()}
    numbers = sorted(int(name[:4]) for name in listed)
    assert numbers == list(range(1, len(numbers) + 1))


# --- commands, settings, routes ---------------------------------------------------------------------------------------


def commands_in(block: Block) -> Iterator[list[str]]:
    """Arguments of every `chainbell` command of a shell block."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.startswith("chainbell "):
            yield shlex.split(line, comments=True)[1:]


SHELL_COMMANDS = [(str(block), arguments) for block in blocks_of("sh") for arguments in commands_in(block)]


def test_the_readme_has_commands() -> None:
    assert len([where for where, _ in SHELL_COMMANDS if where.startswith("README.md")]) >= 4


@pytest.mark.parametrize(
    ("where", "arguments"), SHELL_COMMANDS, ids=lambda value: " ".join(value) if isinstance(value, list) else value
)
def test_every_command_that_is_shown_exists_with_its_options(where: str, arguments: list[str]) -> None:
    command: Any = typer.main.get_command(command_line())
    words = iter(global_options_first(arguments))
    for word in words:
        if hasattr(command, "commands"):
            assert word in command.commands, f"{where}: there is no {word!r}"
            command = command.commands[word]
            if not hasattr(command, "commands"):
                break
    options = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options, where


def test_every_command_that_prose_names_exists() -> None:
    known = set(typer.main.get_command(command_line()).commands)  # type: ignore[attr-defined]
    named = {
        (document.name, name)
        for document in DOCUMENTS
        for name in re.findall(r"`chainbell ([a-z][a-z-]*)", prose_of(document))
    }
    assert {row for row in named if row[1] not in known} == set()
    assert known <= {name for _, name in named} | {arguments[0] for _, arguments in SHELL_COMMANDS}


def test_every_setting_that_is_named_exists() -> None:
    rows = rows_after("docs/operations.md", "### Settings that matter")
    for key in (words_of(row[0])[0] for row in rows):
        section, *path = key.split(".")
        model: type[BaseModel] = ChainSettings if section == "chains" else _section(section)
        assert path[-1] in model.model_fields, key


def _section(name: str) -> type[BaseModel]:
    found = Settings.model_fields[name].annotation
    assert isinstance(found, type) and issubclass(found, BaseModel)
    return found


def test_every_flag_of_a_token_is_documented() -> None:
    told = {words_of(row[0])[0] for row in rows_after("docs/operations.md", "### Flags of a token")}
    assert told == set(AssetSettings.model_fields) - {"contract", "symbol", "decimals"}


def test_every_route_that_is_named_exists() -> None:
    known = {route.path for route in ROUTES} | {route.path for route in OPEN_ROUTES}
    unknown = []
    for document in DOCUMENTS:
        for path in re.findall(
            r"(?<![\w.])(/v1/[\w/{}.-]+|/healthz|/readyz|/metrics|/openapi\.json)", document.read_text()
        ):
            plain = re.sub(r"\b(?:ep|dep|wdr|del|evt|wat|job)_\.\.\.", "{id}", path).rstrip("./")
            plain = plain.replace("/chains/ethereum/", "/chains/{chain}/")
            if plain not in known and plain != "/v1":
                unknown.append((document.name, path))
    assert unknown == []


# --- examples ---------------------------------------------------------------------------------------------------------

PYTHON_BLOCKS = blocks_of("python")


@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=str)
def test_python_compiles(block: Block) -> None:
    compile(block.text, str(block), "exec")


def run_webhook_examples(secret: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Everything that the Python examples for merchants define."""
    monkeypatch.setenv("WEBHOOK_SECRET", secret)
    names: dict[str, Any] = {}
    for block in PYTHON_BLOCKS:
        if block.document.name == "webhooks.md":
            exec(compile(block.text, str(block), "exec"), names)  # noqa: S102 (our own documents)
    return names


def signed(secret: str, sequence: int, state: str) -> tuple[bytes, dict[str, str]]:
    """A webhook as the notifier sends it, at this moment: the library refuses old ones."""
    now = datetime.now(UTC)
    data = {"object": "deposit", "id": "dep_1", "sequence": sequence, "state": state, "disposition": "credit"}
    event_id = EventId(f"evt_{sequence}")
    body = event_body(
        event_id=event_id, event_type=f"deposit.{state}", now=now, livemode=True, sequence=sequence,
        previous_state=None, data=data,
    )  # fmt: skip
    return body, webhook_headers(event_id, now, body, [secret])


def test_the_python_example_accepts_what_we_sign_and_refuses_what_was_altered(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = new_endpoint_secret()
    receive = run_webhook_examples(secret, monkeypatch)["receive"]
    body, headers = signed(secret, 1, "detected")
    assert receive(body, headers) == (204, json.loads(body))
    assert receive(body.replace(b"detected", b"confirmed"), headers) == (401, None)
    assert receive(body, {**headers, "webhook-timestamp": "1700000000"}) == (401, None)
    assert receive(*signed(new_endpoint_secret(), 1, "detected")) == (401, None)


def test_the_example_for_public_keys_accepts_what_the_key_signed_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secret = new_endpoint_secret()
    is_signed_by = run_webhook_examples(secret, monkeypatch)["is_signed_by"]
    private = Ed25519PrivateKey.generate()
    own, foreign = (
        "whpk_" + b64encode(key.public_key().public_bytes_raw()).decode()
        for key in (private, Ed25519PrivateKey.generate())
    )
    signing_key = "whsk_" + b64encode(private.private_bytes_raw()).decode()
    headers = webhook_headers("evt_1", datetime.now(UTC), b"{}", [secret, signing_key])
    assert is_signed_by(own, b"{}", headers)
    assert not is_signed_by(foreign, b"{}", headers)
    assert not is_signed_by(own, b"{ }", headers)
    assert not is_signed_by(own, b"{}", webhook_headers("evt_1", datetime.now(UTC), b"{}", [secret]))
    old = webhook_headers("evt_1", datetime.now(UTC) - timedelta(hours=1), b"{}", [secret, signing_key])
    assert not is_signed_by(own, b"{}", old)


def test_the_whole_rule_copes_with_duplicates_late_arrivals_and_reorgs(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = new_endpoint_secret()
    names = run_webhook_examples(secret, monkeypatch)
    books: dict[str, Any] = {}
    seen = []
    for sequence, state in [
        (1, "detected"),
        (2, "confirmed"),
        (1, "detected"),
        (4, "detected"),
        (3, "reversed"),
        (5, "confirmed"),
    ]:
        _, event = names["receive"](*signed(secret, sequence, state))
        names["take"](books, event)
        seen.append(names["is_credited"](books["dep_1"]))
    assert seen == [False, True, True, False, False, True]


@pytest.mark.parametrize("block", blocks_of("javascript"), ids=str)
def test_javascript_has_no_error_of_syntax(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "example.mjs"
    file.write_text(block.text)
    checked = subprocess.run([node_program(), "--check", str(file)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


WEBHOOK_EXAMPLES: Mapping[str, Any] = {
    event["type"]: event
    for block in blocks_of("json")
    if block.document.name == "webhooks.md"
    for event in [json.loads(block.text)]
}


@pytest.mark.parametrize("event_type", WEBHOOK_EXAMPLES)
def test_example_events_are_those_of_the_apis_description(event_type: str) -> None:
    assert WEBHOOK_EXAMPLES[event_type] == example_of(event_type)


@pytest.mark.parametrize("block", blocks_of("json"), ids=str)
def test_json_is_json(block: Block) -> None:
    json.loads(block.text)


# --- tables -----------------------------------------------------------------------------------------------------------


def test_every_event_type_is_documented_with_its_state() -> None:
    told = {words_of(row[0])[0]: row[1] for row in rows_after("docs/webhooks.md", "## Every type")}
    assert set(told) == set(EVENT_TYPES)
    for event_type, state in told.items():
        is_entry = event_type.startswith(("deposit.", "withdrawal."))
        expected = (
            "as before"
            if event_type.endswith(".moved")
            else f"`{example_of(event_type)['data']['state']}`"
            if is_entry
            else ""
        )
        assert state == expected, event_type


def test_every_reason_is_documented() -> None:
    told = {words_of(row[0])[0] for row in rows_after("docs/webhooks.md", "### Told, but no money")}
    assert told == {reason.value for reason in Reason}


def plain(cell: str) -> str:
    return cell.replace("`", "")


def test_every_profile_is_documented_as_it_is() -> None:
    profiles = {name: load_profile(name) for name in profile_names()}
    told = {plain(row[0]): [plain(cell) for cell in row[1:]] for row in rows_after("docs/chains.md", "## The profiles")}
    assert told == {
        name: [
            p.chain_id,
            f"{p.native.symbol}, {p.native.id.partition('/')[2]}",
            f"{p.block_time_s:g} s, {p.poll_interval_s:g} s",
            f"{', '.join(p.finality_tags)}; {p.finality_depth}",
            str(p.credit_at),
            p.proof.value,
        ]
        for name, p in profiles.items()
    }
    unproven = [(plain(row[0]), row[1]) for row in rows_after("docs/chains.md", "## What is not proven, or not read")]
    assert sorted(unproven) == sorted((name, said) for name, p in profiles.items() for said in p.unproven)


def test_every_listed_token_and_alias_is_documented() -> None:
    profiles = {name: load_profile(name) for name in profile_names()}
    tokens = {plain(row[0]): row[1] for row in rows_after("docs/chains.md", "## Stablecoins")}
    assert tokens == {
        name: ", ".join(f"{token.symbol} ({token.decimals})" for token in p.tokens)
        for name, p in profiles.items()
        if p.tokens
    }
    faces = [(plain(row[0]), words_of(row[1])[0]) for row in rows_after("docs/chains.md", "## The coin's other faces")]
    own = [(name, checksum_of(alias)) for name, p in profiles.items() for alias in p.native_aliases[1:]]
    assert sorted(faces) == sorted([("every one", checksum_of(ETHER_LOG_EMITTER)), *own])


def test_the_retries_are_those_of_the_schedule() -> None:
    units = {"s": "seconds", "min": "minutes", "h": "hours"}
    [waits] = rows_after("docs/webhooks.md", "## Retries")
    told = [timedelta(**{units[unit]: int(number)}) for number, unit in (wait.split() for wait in waits[1:])]
    assert tuple(told) == SCHEDULE


def test_the_states_of_an_entry_and_their_arrows_are_those_of_the_code() -> None:
    rows = rows_after("docs/architecture.md", "## States of an entry")
    told = {EntryState(words_of(row[0])[0]): {EntryState(word) for word in words_of(row[2])} for row in rows}
    assert told == {state: set(targets) for state, targets in ENTRY_TRANSITIONS.items()}


def test_the_states_of_a_chain_are_explained() -> None:
    _, _, after_fields = (ROOT / "docs/operations.md").read_text().partition("\n| state | means | you |\n")
    told = re.findall(r"^\| `(\w+)` \|", after_fields.partition("\n\n")[0], re.MULTILINE)
    assert set(told) == {state.value for state in ChainState}


def test_every_metric_is_documented_and_every_documented_one_exists() -> None:
    rooms = (ROOT / room for room in ("chains", "indexer", "notifier", "api"))
    code = "".join(file.read_text() for room in rooms for file in room.rglob("*.py"))
    exist = set(re.findall(r'"(chainbell_[a-z_]+)"', code))
    told = {words_of(row[0])[0].partition("{")[0] for row in rows_after("docs/operations.md", "## Metrics and alerts")}
    assert told == exist
    assert exist >= CONTRACT_METRICS


def test_alerts_ask_for_metrics_that_exist() -> None:
    told = set(re.findall(r"chainbell_[a-z_]+", (ROOT / "docs/operations.md").read_text()))
    rows = {words_of(row[0])[0].partition("{")[0] for row in rows_after("docs/operations.md", "## Metrics and alerts")}
    assert {name.removesuffix("_bucket") for name in told} - rows == {"chainbell_api"}


def test_every_test_that_holds_an_invariant_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs/architecture.md").read_text())
    assert len(named) >= 10
    assert [row for row in named if f"def {row[1]}(" not in (ROOT / row[0]).read_text()] == []


def test_every_threat_has_a_test_that_exists() -> None:
    rows = rows_after("docs/threats.md", "## The table")
    assert [row[0] for row in rows] == [str(number) for number in range(1, 22)]
    for number, _, _, held_by in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", held_by)
        assert named, number
        assert [row for row in named if f"def {row[1]}(" not in (ROOT / row[0]).read_text()] == [], number


def test_every_statement_that_crosses_tenants_exists() -> None:
    rows = rows_after("docs/architecture.md", "### Statements that cross tenants")
    for file, *functions in (words_of(row[0]) for row in rows):
        text = (ROOT / file).read_text()
        missing = [name for name in functions if not name.endswith(".py") and f"def {name}(" not in text]
        assert missing == [], file
