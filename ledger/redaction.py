"""Taking our own secrets out of texts that somebody else wrote. Pure.

A receiver's debug page shows the variables of its server, and among them the secret that it verifies by and the API key
that it asks with; a library's complaint quotes the request that it could not read.
"""

from __future__ import annotations

import re

_TOKEN = re.compile(r"(?:whsec_|whsk_|cb_live_)[^\s\"'<>]+")
"""To the next space or quote, whatever is between: it may be escaped for HTML, JSON or a URL."""

HIDDEN = "***"


def hide_secrets(text: str) -> str:
    """`text` with `***` in the place of each endpoint secret, private key and API key of ours."""
    # Looked for one by one: every field of every line in the log comes by here.
    is_clean = "whsec_" not in text and "whsk_" not in text and "cb_live_" not in text
    return text if is_clean else _TOKEN.sub(HIDDEN, text)
