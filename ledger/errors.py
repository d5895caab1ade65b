"""What can go wrong in the ledger, split by what the caller does next.

    LedgerError
    |-- CheckpointMoved        start the cycle again: another follower committed first; nothing was written
    |-- StoryConflict          stop and look: an entry changed under the chain's lock, which must not be possible
    |-- JobTaken               stop working on it: a job was cancelled, or another process has it; nothing was written
    |-- ClaimUnfinished        try again later: a worker stands still while it claims; nothing was put into its lanes
    |-- HoldUnfinished         refuse the input for now: a pause has not gone over all that its endpoint is owed
    |-- UnknownName            refuse the input: no such chain, tenant, key or endpoint
    |-- NameTaken              refuse the input: the name is in use
    |-- NoSuchHeights          refuse the input: heights that we have not read, or the higher one first
    |-- NotHalted              refuse the input: there is no halt to lift
    |-- NoSuchBranch           refuse the input: no reorg that was halted for grows out of that height
    |-- BadAddress             refuse the input: no address, or a wrong checksum (ledger/addresses.py)
    |-- InvalidCursor          refuse the input: a cursor that was not ours, or not for this list (ledger/cursors.py)
    |-- TooManySecrets         refuse the input: as many secrets are valid as may be (ledger/endpoint_secrets.py)
    |-- MigrationRefused       refuse to start: the database user lacks a privilege
    |-- SchemaBehind           refuse to start: migrations are missing
    `-- SecretError            ledger/secrets.py
        |-- BadMasterKey       refuse to start: the master key is not 32 bytes of base64
        |-- WrongMasterKey     refuse to start: the database's secrets are sealed under another master key
        `-- SealBroken         stop and look: a secret was sealed by another key or for another row

Beside it stand ValueErrors of what a tenant typed: `MalformedKey` (ledger/keys.py), `UnsafeUrl` (ledger/urls.py).
"""

from __future__ import annotations

from typing import Literal


class LedgerError(Exception):
    """Anything that the ledger refuses."""


class CheckpointMoved(LedgerError):
    """The chain's tip is not the one that the caller built on; nothing was written."""


class StoryConflict(LedgerError):
    """An entry's sequence was not the one that was read under the lock; nothing was written."""


class JobTaken(LedgerError):
    """A job is not this process's any more: it was cancelled, has ended, or its lease went to another."""


class ClaimUnfinished(LedgerError):
    """A claim of an endpoint is half done, and does not end: its worker stands still."""


class HoldUnfinished(LedgerError):
    """A paused endpoint is owed more that is not held yet than a resumption holds at once."""


class UnknownName(LedgerError):
    """There is no such chain, tenant, key or endpoint."""


class NameTaken(LedgerError):
    """The name is already in use."""


class NoSuchHeights(LedgerError):
    """The asked heights of a chain cannot be told of, or read again; `part` says which part of the question is at fault."""

    def __init__(self, part: Literal["chain", "from", "to"], message: str) -> None:
        super().__init__(message)
        self.part = part


class NotHalted(LedgerError):
    """The chain is not halted: there is nothing to resume."""


class NoSuchBranch(LedgerError):
    """A reorg below finality cannot be accepted down to that height."""


class SchemaBehind(LedgerError):
    """The database has not seen every migration."""


class MigrationRefused(LedgerError):
    """The database user may not do what a migration needs."""
