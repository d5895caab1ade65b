"""All denied places in a network where every address answers: whoever is reached is counted, and nothing goes out."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

import pytest

from tests.fakes.addresses import DENIED_LITERALS, METADATA_ADDRESSES
from tests.fakes.walled import PUBLIC, REBINDINGS, denied_addresses

NAMESPACE = ("unshare", "--map-root-user", "--net")


def has_namespaces() -> bool:
    """Whether this kernel gives an ordinary user a network of its own."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    return (
        subprocess.run([*NAMESPACE, "ip", "link", "set", "lo", "up"], capture_output=True, check=False).returncode == 0
    )


def report_of(*command: str) -> dict[str, Any]:
    """What the program of `tests/fakes/walled.py` counted."""
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ran.returncode == 0, ran.stderr
    report: dict[str, Any] = json.loads(ran.stdout)
    return report


def assert_all_refused(outcomes: dict[str, dict[str, int]]) -> None:
    """Each was refused, by our own words for it, and none was left out."""
    expected = {
        "literals": len(DENIED_LITERALS),
        "tls": len(DENIED_LITERALS),
        "names": 2 * len(denied_addresses()),
        "metadata": len(METADATA_ADDRESSES),
    }
    for what, how_many in expected.items():
        assert set(outcomes[what]) <= {"refused/refused_address", "refused/bad_url"}, what
        assert sum(outcomes[what].values()) == how_many, what


@pytest.mark.skipif(not has_namespaces(), reason="this kernel gives no network namespace; the tripwire's test remains")
def test_where_every_address_answers_only_the_public_ones_are_reached() -> None:
    report = report_of(*NAMESPACE, sys.executable, "-m", "tests.fakes.walled")
    outcomes = report["outcomes"]
    assert_all_refused(outcomes)
    assert outcomes["control"] == {"accepted/200": 2}
    assert outcomes["redirect"] == {"retryable/redirect": 1}
    assert outcomes["rebinding"] == {"accepted/200": REBINDINGS // 2, "refused/refused_address": REBINDINGS // 2}
    reached = {PUBLIC[0]: 2 + REBINDINGS // 2, PUBLIC[1]: 1}
    assert report["tried"] == reached
    assert report["accepted"] == reached


def test_no_denied_place_is_even_tried() -> None:
    report = report_of(sys.executable, "-m", "tests.fakes.walled", "--tripwire-only")
    assert_all_refused(report["outcomes"])
    assert report["tried"] == {}
