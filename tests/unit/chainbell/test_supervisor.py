"""What a role's process is given before it works."""

from __future__ import annotations

import resource
import subprocess
import sys

ASKED = """
import resource
from chainbell.supervisor import raise_open_files_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (256, {hard}))
raise_open_files_limit()
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def test_a_process_may_have_as_many_sockets_as_the_system_allows_it() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    allowed = 2048 if hard == resource.RLIM_INFINITY else min(hard, 2048)
    asked = subprocess.run(
        [sys.executable, "-c", ASKED.format(hard=allowed)], capture_output=True, text=True, check=True
    )
    assert int(asked.stdout) == allowed > 256
