"""Fields of documents whose text is one word of a fixed set, or a time. Pure.

What is described is what is written: the sets are read off the enumerations that the ledger itself works with.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from chains.model import AssetKind, LocatorKind, ProofLevel, TraceProof
from ledger.states import (
    AttemptError,
    ChainState,
    DeliveryState,
    Disposition,
    EndpointState,
    EntryState,
    Fault,
    JobKind,
    JobState,
    Origin,
    Outcome,
    Reason,
)


def _of(*sets: type[StrEnum]) -> Meta:
    return _one_of([word.value for words in sets for word in words])


def _one_of(words: Sequence[str]) -> Meta:
    return Meta(extra_json_schema={"enum": list(words)})


Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
"""RFC 3339, in UTC."""

EntryWord = Annotated[str, _of(EntryState)]
DispositionWord = Annotated[str, _of(Disposition)]
ReasonWord = Annotated[str, _of(Reason)]
OriginWord = Annotated[str, _of(Origin)]
AssetWord = Annotated[str, _of(AssetKind)]
LocatorWord = Annotated[str, _of(LocatorKind)]
FinalityWord = Annotated[str, _one_of(("none", "safe", "finalized"))]
ProofWord = Annotated[str, _of(ProofLevel)]
TraceProofWord = Annotated[str, _of(TraceProof)]
AnyProofWord = Annotated[str, _of(ProofLevel, TraceProof)]
FailureWord = Annotated[str, _one_of(("reverted",))]
ChainWord = Annotated[str, _of(ChainState)]
NodeWord = Annotated[str, _one_of(("ok", "failing", "unknown"))]
WatchWord = Annotated[str, _one_of(("active", "exists", "deleted"))]
EndpointWord = Annotated[str, _of(EndpointState)]
DeliveryWord = Annotated[str, _of(DeliveryState)]
FaultWord = Annotated[str, _of(Fault)]
OutcomeWord = Annotated[str, _of(Outcome)]
ErrorWord = Annotated[str, _of(AttemptError)]
JobKindWord = Annotated[str, _of(JobKind)]
JobWord = Annotated[str, _of(JobState)]
