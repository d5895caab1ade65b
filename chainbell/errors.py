"""What can stop a command, split by the exit status that its caller sees.

    ChainbellError           exit 1: it failed; the text is one sentence: what, where, remedy
    |-- SettingsError        exit 2: a setting is wrong
    `-- UsageError           exit 2: the command line is wrong

Exit 3 (done, but differences were found) is no error: a command returns it.
"""

from __future__ import annotations

from typing import ClassVar


class ChainbellError(Exception):
    """A command cannot go on; the text is for the operator."""

    exit_status: ClassVar[int] = 1


class SettingsError(ChainbellError):
    """A setting is unknown, missing, of the wrong type, or contradicts another; the text names key, value and remedy."""

    exit_status = 2


class UsageError(ChainbellError):
    """The command line asks for something that there is not."""

    exit_status = 2
