"""Taking our own secrets out of texts that somebody else wrote. Pure.

A receiver's debug page shows the variables of its server, and among them the secret that it verifies by and the API key
that it asks with; a library's complaint quotes the request that it could not read.
"""

from __future__ import annotations

import re

_PREFIXES = ("whsec_", "whsk_", "cb_live_")
_TOKEN = re.compile(r"(?:whsec_|whsk_|cb_live_)[^\s\"'<>]+")
"""To the next space or quote, whatever is between: it may be escaped for HTML, JSON or a URL."""

HIDDEN = "***"


def hide_secrets(text: str) -> str:
    """`text` with `***` in the place of each endpoint secret, private key and API key of ours."""
    return _TOKEN.sub(HIDDEN, text) if any(prefix in text for prefix in _PREFIXES) else text
