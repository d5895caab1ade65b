"""What can go wrong in the ledger, split by what the caller does next.

LedgerError
|-- CheckpointMoved     start the cycle again: another follower committed first; nothing was written
|-- StoryConflict       stop and look: an entry changed under the chain's lock, which must not be possible
|-- UnknownName         refuse the input: no such chain, tenant, key or endpoint
|-- NameTaken           refuse the input: the name is in use
`-- SchemaBehind        refuse to start: migrations are missing
"""

from __future__ import annotations


class LedgerError(Exception):
    """Anything that the ledger refuses."""


class CheckpointMoved(LedgerError):
    """The chain's tip is not the one that the caller built on; nothing was written."""


class StoryConflict(LedgerError):
    """An entry's sequence was not the one that was read under the lock; nothing was written."""


class UnknownName(LedgerError):
    """There is no such chain, tenant, key or endpoint."""


class NameTaken(LedgerError):
    """The name is already in use."""


class SchemaBehind(LedgerError):
    """The database has not seen every migration."""


class MigrationRefused(LedgerError):
    """The database user may not do what a migration needs."""
