"""Reading our own source: which walls between rooms, and which measures of the house, a file breaks."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOMS = ("chains", "ledger", "indexer", "notifier", "api", "chainbell")
LINES_OF_FUNCTION_MAX = 70
LINES_OF_MODULE_MAX = 500

MAY_IMPORT = {
    "chains": {"chains"},
    "ledger": {"ledger", "chains", "migrations"},
    "indexer": {"indexer", "chains", "ledger"},
    "notifier": {"notifier", "ledger"},
    "api": {"api", "ledger"},
    "chainbell": set(ROOMS),
    "migrations": {"migrations", "ledger"},
}
"""Which of our rooms each room may import."""

PURE = """
    chains.errors chains.model chains.node.jsonrpc chains.node.naming chains.evm.address chains.evm.bloom
    chains.evm.dialect chains.evm.envelope chains.evm.header chains.evm.keccak chains.evm.proof chains.evm.reading
    chains.evm.receipt chains.evm.rlp chains.evm.senders chains.evm.tokens chains.evm.transfers chains.evm.trie
    chains.evm.wire indexer.branch indexer.finality indexer.policy indexer.reconcile indexer.story ledger.states ledger.urls
    notifier.backoff notifier.outcome notifier.signing
"""
"""Modules that know no clock, chance, network or database: all that comes in as arguments. Others join by saying "Pure." in
their docstring."""

_IMPURE_LIBRARIES = {
    *("asyncio", "time", "random", "secrets", "socket", "threading", "subprocess"),
    *("sqlalchemy", "psycopg", "alembic", "aiohttp", "uvloop", "requests"),
}
_CLOCK_CALLS = {
    ("datetime", "now"),
    ("datetime", "utcnow"),
    ("datetime", "today"),
    ("date", "today"),
    ("os", "urandom"),
}

_SQL_LIBRARIES = {"sqlalchemy", "psycopg", "psycopg_pool", "alembic"}
_SQL_ROOMS = {"ledger", "migrations", "chainbell"}
_SQL_HANDLES = {
    "sqlalchemy.ext.asyncio.AsyncConnection",
    "sqlalchemy.ext.asyncio.AsyncEngine",
    "sqlalchemy.exc.DBAPIError",
}
"""What the other rooms may hold and hand on to the ledger's functions, and the failure that they may wait out."""

_HTTP_ROOMS = {"chains", "notifier", "api", "chainbell"}
_GUARDED_MODULES = {"notifier.sender", "notifier.guard", "notifier.bounds"}
"""All of the notifier that may know how to call out: what a tenant steers goes through the guard or nowhere."""
_UNGUARDED_CLIENTS = ("urllib.request", "http.client", "httpx", "requests")


@dataclass(frozen=True, slots=True)
class Import:
    """One imported name, in full, e.g. `ledger.database.transaction`."""

    line: int
    name: str

    @property
    def root(self) -> str:
        """Its package."""
        return self.name.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Source:
    """One parsed file of a room."""

    module: str
    """Dotted name, e.g. `chains.evm.proof`."""
    text: str
    tree: ast.Module
    is_package: bool = False

    @property
    def room(self) -> str:
        """The room that it is in."""
        return self.module.partition(".")[0]

    @property
    def is_pure(self) -> bool:
        """True where the module promises to be pure, in the list or in its docstring."""
        return self.module in PURE.split() or "Pure." in (ast.get_docstring(self.tree) or "")


def read_sources(root: Path, rooms: tuple[str, ...] = (*ROOMS, "migrations")) -> list[Source]:
    """Every Python file of the rooms under `root`."""
    return [_read(root, path) for room in rooms for path in sorted((root / room).rglob("*.py"))]


def _read(root: Path, path: Path) -> Source:
    parts = path.relative_to(root).with_suffix("").parts
    module = ".".join(part for part in parts if part != "__init__")
    text = path.read_text()
    return Source(module, text, ast.parse(text, str(path)), path.name == "__init__.py")


def imports_of(source: Source) -> Iterator[Import]:
    """Everything that a file imports, wherever in it, relative imports resolved."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            here = source.module.split(".") + (["__init__"] if source.is_package else [])
            package = here[: -node.level] if node.level else []
            prefix = ".".join([*package, *([node.module] if node.module else [])])
            yield from (Import(node.lineno, f"{prefix}.{alias.name}") for alias in node.names)


def broken_walls(source: Source) -> Iterator[str]:
    """Imports that a room must not make: other rooms, SQL outside the ledger, HTTP where there is no door."""
    for found in imports_of(source):
        where = f"{source.module}:{found.line} imports {found.name}"
        if found.root in MAY_IMPORT and found.root not in MAY_IMPORT[source.room]:
            yield f"{where}: {source.room} may import only {', '.join(sorted(MAY_IMPORT[source.room]))}"
        if source.room == "ledger" and found.root == "chains" and not _is_pure_name(found.name):
            yield f"{where}: the ledger may import only the pure parts of chains"
        if found.root in _SQL_LIBRARIES and source.room not in _SQL_ROOMS and found.name not in _SQL_HANDLES:
            yield f"{where}: SQL belongs in the ledger"
        if found.root == "aiohttp" and (
            source.room not in _HTTP_ROOMS or (source.room == "api" and not _is_server(found))
        ):
            yield f"{where}: only chains and the notifier call out"
        if found.root == "aiohttp" and source.room == "notifier" and source.module not in _GUARDED_MODULES:
            yield f"{where}: only the guarded sender calls out"
        if found.name.startswith(_UNGUARDED_CLIENTS):
            yield f"{where}: no guard stands before this client"


def _is_server(found: Import) -> bool:
    return found.name.startswith(("aiohttp.web", "aiohttp.hdrs", "aiohttp.typedefs", "aiohttp.http_exceptions"))


def _is_pure_name(name: str) -> bool:
    pure = PURE.split()
    return name in pure or name.rpartition(".")[0] in pure


def impurities(source: Source) -> Iterator[str]:
    """What a module that promises to be pure must not do."""
    if not source.is_pure:
        return
    for found in imports_of(source):
        if found.root in _IMPURE_LIBRARIES:
            yield f"{source.module}:{found.line} imports {found.name}: a pure module takes such things as arguments"
    for node in ast.walk(source.tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and (node.value.id, node.attr) in _CLOCK_CALLS
        ):
            yield f"{source.module}:{node.lineno} asks {node.value.id}.{node.attr}: a pure module is given the time"


def oversizes(source: Source) -> Iterator[str]:
    """Functions and modules longer than the house allows. A migration is a schema written out once, and left alone."""
    if source.module.startswith("migrations.versions."):
        return
    lines = source.text.count("\n")
    if lines > LINES_OF_MODULE_MAX:
        yield f"{source.module}: {lines} lines, {LINES_OF_MODULE_MAX} are allowed"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            length = node.end_lineno - node.lineno + 1
            if length > LINES_OF_FUNCTION_MAX:
                yield f"{source.module}:{node.lineno} {node.name}: {length} lines, {LINES_OF_FUNCTION_MAX} are allowed"


def undocumented(source: Source) -> Iterator[str]:
    """Public modules, classes, functions and methods without a docstring."""
    if ast.get_docstring(source.tree) is None:
        yield f"{source.module}: the module has no docstring"
    yield from _undocumented_in(source.module, source.tree)


def _undocumented_in(name: str, parent: ast.Module | ast.ClassDef) -> Iterator[str]:
    for node in parent.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None:
            yield f"{name}.{node.name} has no docstring"
        if isinstance(node, ast.ClassDef):
            yield from _undocumented_in(f"{name}.{node.name}", node)
