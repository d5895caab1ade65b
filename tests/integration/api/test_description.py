"""The API against its own description: schemathesis calls every operation with what its schema allows and forbids."""

from __future__ import annotations

from pathlib import Path

import pytest

from ledger.ids import OPS_TENANT
from tests.integration.api.conftest import Service
from tests.integration.api.describing import call_everything, fill

EXAMPLES = 3
"""Few: `make fuzz` has thousands. The phase that covers each limit of each schema is whole in any case."""
SEED = 7


@pytest.mark.timeout(1800)  # some 2,000 requests: half a minute on a machine that does nothing else
async def test_no_request_of_schemathesis_is_answered_against_the_description(service: Service, tmp_path: Path) -> None:
    await fill(service)
    operators = await service.make_key("*", tenant_id=OPS_TENANT)
    for key, which in ((service.key, ()), (operators, ("--include-path-regex", "^/v1/(replays|jobs|chains)"))):
        is_well, said = await call_everything(service.url, key, tmp_path, *which, examples=EXAMPLES, seed=SEED)
        assert is_well, said[-20000:]
