"""The walls of the house stand, its measures are kept, and the inspector sees what is planted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.rooms import (
    PURE,
    ROOMS,
    Source,
    broken_walls,
    impurities,
    oversizes,
    read_sources,
    undocumented,
)

ROOT = Path(__file__).resolve().parents[1]
CHECKS = (broken_walls, impurities, oversizes, undocumented)
Check = Callable[[Source], Iterator[str]]


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    """Every file of every room."""
    return read_sources(ROOT)


def test_every_room_is_read(sources: list[Source]) -> None:
    assert {source.room for source in sources} == {*ROOMS, "migrations"}


def test_every_module_that_is_called_pure_is_there(sources: list[Source]) -> None:
    assert set(PURE.split()) <= {source.module for source in sources}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_house_is_in_order(check: Check, sources: list[Source]) -> None:
    assert [complaint for source in sources for complaint in check(source)] == []


PLANTED = [
    ("chains/a.py", "from ledger.ids import TenantId", broken_walls, "chains may import only chains"),
    ("indexer/a.py", "def f():\n    import notifier.sender", broken_walls, "indexer may import only"),
    ("notifier/a.py", "import chains.model", broken_walls, "notifier may import only ledger, notifier"),
    ("api/a.py", "from chains import model", broken_walls, "api may import only api, ledger"),
    ("ledger/a.py", "from chains.node.client import NodeClient", broken_walls, "only the pure parts of chains"),
    (
        "ledger/__init__.py",
        "from .embedded import x\nfrom indexer import y",
        broken_walls,
        "ledger:2 imports indexer.y",
    ),
    ("indexer/a.py", "from sqlalchemy import select", broken_walls, "SQL belongs in the ledger"),
    ("api/a.py", "import psycopg", broken_walls, "SQL belongs in the ledger"),
    ("api/a.py", "from aiohttp import ClientSession", broken_walls, "only chains and the notifier call out"),
    ("ledger/a.py", "import aiohttp", broken_walls, "only chains and the notifier call out"),
    ("notifier/a.py", "import aiohttp", broken_walls, "only the guarded sender calls out"),
    ("notifier/a.py", "from urllib.request import urlopen", broken_walls, "no guard stands before this client"),
    ("chainbell/a.py", "import http.client", broken_walls, "no guard stands before this client"),
    ("indexer/policy.py", "import asyncio", impurities, "takes such things as arguments"),
    ("notifier/a.py", '"""A rule. Pure."""\nfrom random import random', impurities, "takes such things as arguments"),
    ("indexer/story.py", "from datetime import datetime\nNOW = datetime.now()", impurities, "is given the time"),
    ("api/a.py", "def f():\n" + "    f()\n" * 70, oversizes, "api.a:1 f: 71 lines, 70 are allowed"),
    ("api/a.py", "1\n" * 501, oversizes, "501 lines, 500 are allowed"),
    ("api/a.py", "", undocumented, "api.a: the module has no docstring"),
    (
        "api/a.py",
        '"""A."""\nclass A:\n    """A."""\n    async def f(self): ...',
        undocumented,
        "api.a.A.f has no docstring",
    ),
]


@pytest.mark.parametrize(
    ("path", "text", "check", "said"), PLANTED, ids=[f"{path}: {said}" for path, _, _, said in PLANTED]
)
def test_a_planted_fault_is_found(tmp_path: Path, path: str, text: str, check: Check, said: str) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(text)
    (source,) = read_sources(tmp_path)
    (complaint,) = check(source)
    assert said in complaint


SOUND = [
    ("indexer/a.py", "from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine"),
    ("ledger/a.py", "from chains.model import Block\nfrom sqlalchemy import select"),
    ("api/a.py", "from aiohttp import web\nfrom aiohttp.web import Request"),
    ("chains/node/a.py", "import aiohttp"),
    ("chainbell/a.py", "import aiohttp\nfrom indexer import policy\nfrom sqlalchemy import text"),
]


@pytest.mark.parametrize(("path", "text"), SOUND, ids=[path for path, _ in SOUND])
def test_what_is_allowed_is_not_complained_about(tmp_path: Path, path: str, text: str) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(f'"""Sound."""\n{text}\n')
    (source,) = read_sources(tmp_path)
    assert [complaint for check in CHECKS for complaint in check(source)] == []


def test_migrations_follow_each_other() -> None:
    """Two that follow the same one leave no head: it takes one look to see, and a database to find out."""
    files = sorted((Path(__file__).parent.parent / "migrations" / "versions").glob("v*.py"))
    numbers = [file.name.split("_")[0].removeprefix("v") for file in files]
    said = [re.findall(r'^(?:down_)?revision = (?:"(\d+)"|None)$', file.read_text(), re.MULTILINE) for file in files]
    assert said == [list(pair) for pair in zip(numbers, ["", *numbers], strict=False)]
    assert numbers == [f"{number:04}" for number in range(1, len(files) + 1)]
