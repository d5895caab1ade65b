"""The health check of the containers, against a server as it runs in one."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.outside.installation import installed

COMPOSE = Path(__file__).parent.parent.parent / "docker" / "compose.yaml"


async def health(port: int) -> int:
    """Exit status of the `serve` service's check, asking our port in the place of the container's."""
    check: Any = yaml.safe_load(COMPOSE.read_text())["services"]["serve"]["healthcheck"]["test"]
    kind, python, *arguments = check
    assert (kind, python) == ("CMD", "python")
    arguments = [word.replace(":8080", f":{port}") for word in arguments]
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stderr=asyncio.subprocess.DEVNULL)
    return await process.wait()


async def test_the_health_check_follows_the_server(tmp_path: Path, module_database_url: str) -> None:
    async with installed(tmp_path, module_database_url) as here:
        assert await health(here.port) == 1
        await here.start("serve")
        await here.ready()
        assert await health(here.port) == 0
        await here.stop("serve")
        assert await health(here.port) == 1


async def test_a_server_whose_schema_is_behind_is_not_healthy(tmp_path: Path, module_empty_database_url: str) -> None:
    async with installed(tmp_path, module_empty_database_url) as here:
        ended = await here.attempt("serve")
        assert "chainbell migrate" in ended.sentence
        assert await health(here.port) == 1
