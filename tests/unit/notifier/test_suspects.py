"""Suspects, one at a time, and no endpoint that does not answer delays all of them."""

from __future__ import annotations

from datetime import UTC, datetime

from ledger.claims import Claimed
from ledger.ids import DeliveryId, EndpointId, EventId, TenantId
from ledger.states import Outcome
from ledger.suspects import Suspect
from notifier.isolation import Isolation, Waiting
from notifier.suspects import ALONE_FIRST_S, ALONE_MAX_S, Suspects

NOW = datetime(2026, 11, 26, tzinfo=UTC)
TENANT = TenantId("ten_a")


def suspect(number: int, takeovers: int = 2) -> Suspect:
    """One of an endpoint of its own."""
    return Suspect(TENANT, EndpointId(f"ep_{number}"), DeliveryId(f"del_{number}"), NOW, takeovers)


def claimed(of: Suspect, *, is_taken_over: bool = True) -> Claimed:
    """As a claim brings it."""
    return Claimed(
        tenant_id=TENANT,
        id=of.id,
        event_id=EventId("evt_1"),
        event_created_at=NOW,
        endpoint_id=of.endpoint_id,
        subject="dep_1",
        feed_position=1,
        priority=0,
        attempts=4,
        lease_token="me-1",
        is_taken_over=is_taken_over,
        body=b"{}",
        url="https://example.com",
        is_endpoint_gone=False,
    )


def take_turn(suspects: Suspects, isolation: Isolation, now: float) -> Suspect | None:
    """As a claim does that finds the same again."""
    return suspects.take_next(isolation, now) if suspects.is_turn(now) else None


def test_the_next_one_has_its_turn_when_the_outcome_of_the_one_before_is_stored() -> None:
    suspects, isolation = Suspects(), Isolation()
    suspects.note_found([suspect(1), suspect(2)])
    first = take_turn(suspects, isolation, 0.0)
    assert first == suspect(1)
    sent = claimed(suspect(1))
    suspects.note_claimed(suspect(1), sent, 0.0)
    assert take_turn(suspects, isolation, 0.1) is None
    suspects.note_settled(claimed(suspect(1)))  # of an earlier claim
    assert take_turn(suspects, isolation, 0.1) is None
    suspects.note_settled(sent)
    assert take_turn(suspects, isolation, 0.1) == suspect(2)
    assert take_turn(suspects, isolation, 0.1) is None


def test_one_that_does_not_answer_is_passed_by_and_waited_for_twice_as_long_each_time() -> None:
    alone_s = []
    for takeovers in (1, 2, 3, 4, 5, 6, 12):
        suspects = Suspects()
        suspects.note_claimed(suspect(1, takeovers), claimed(suspect(1)), 0.0)
        alone_s.append(suspects.alone_until)
        suspects.note_found([suspect(2)])
        assert take_turn(suspects, Isolation(), alone_s[-1] - 0.01) is None
        assert take_turn(suspects, Isolation(), alone_s[-1]) == suspect(2)
    assert alone_s == [ALONE_FIRST_S * factor for factor in (1, 2, 4, 8, 16, 32)] + [ALONE_MAX_S]


def test_of_as_many_takeovers_those_that_had_no_turn_come_first() -> None:
    suspects, isolation = Suspects(), Isolation()
    found = [suspect(1), suspect(2), suspect(3, 5), suspect(4)]
    suspects.note_found(found)
    assert take_turn(suspects, isolation, 0.0) == suspect(1)
    suspects.note_found([*found, suspect(5)])
    assert [one.id for one in suspects.found] == ["del_2", "del_4", "del_1", "del_5", "del_3"]
    suspects.note_found([])
    assert take_turn(suspects, isolation, 0.0) is None


def test_endpoints_take_turns_however_many_suspects_one_has() -> None:
    suspects, isolation, taken = Suspects(), Isolation(), list[str]()
    left = {"ep_a": 3, "ep_b": 1, "ep_c": 2}
    for _ in range(6):
        found = [
            Suspect(TENANT, EndpointId(key), DeliveryId(f"{key}_{rest}"), NOW, 2) for key, rest in left.items() if rest
        ]
        suspects.note_found(found)
        suspect = suspects.take_next(isolation, 0.0)
        assert suspect is not None
        taken.append(suspect.endpoint_id)
        left[suspect.endpoint_id] -= 1
    assert taken[:3] == ["ep_a", "ep_b", "ep_c"]
    assert set(left.values()) == {0}


def test_what_a_claim_does_not_bring_is_left_until_the_next_sweep() -> None:
    suspects, isolation = Suspects(), Isolation()
    suspects.note_swept([suspect(1), suspect(2)])
    for expected in (suspect(1), suspect(2), None):
        assert suspects.is_turn(0.0)
        suspects.note_found([suspect(1), suspect(2)])
        taken = suspects.take_next(isolation, 0.0)
        assert taken == expected
        if taken is not None:
            suspects.note_claimed(taken, None, 0.0)
    assert not suspects.is_turn(0.0)
    suspects.note_swept([suspect(1), suspect(2)])
    assert suspects.is_turn(0.0)
    assert suspects.take_next(isolation, 0.0) is not None


def test_a_backlog_of_one_that_accepts_is_no_reason_to_wait() -> None:
    suspects, isolation = Suspects(), Isolation()
    for number in range(100):
        isolation.add(Waiting(claimed(suspect(1)), (), 0.0), 0.0)
        if number == 0:
            [exchange] = [isolation.begin(0.0)]
            assert exchange is not None
            isolation.end(exchange, 0.0, Outcome.ACCEPTED)
    suspects.note_found([suspect(1)])
    assert suspects.take_next(isolation, 0.0) == suspect(1)


def test_one_whose_endpoint_has_no_room_is_passed_over() -> None:
    suspects, isolation = Suspects(), Isolation()
    for _ in range(2):  # the window of one that never accepted anything
        isolation.add(Waiting(claimed(suspect(1)), (), 0.0), 0.0)
        assert isolation.begin(0.0) is not None
    suspects.note_found([suspect(1), suspect(2)])
    assert take_turn(suspects, isolation, 0.0) == suspect(2)
