"""Who runs next: the roster's decisions, as values."""

from __future__ import annotations

import math
from typing import cast

import pytest

from eventmill.entities import Action, Limits
from eventmill.executors.pool.link import Link
from eventmill.executors.pool.roster import Lane, Roster, Worker
from tests.executors.driving import attempt


def action(name: str, instances: int | None = None) -> Action:
    limits = Limits(instances=instances)
    return Action(namespace="n", name=name, version="0.0.1", revision=1, kind="python:3.11", code="c", limits=limits)


def wait(roster: Roster, name: str, count: int = 1, instances: int | None = None) -> Lane:
    """Have attempts of an action wait."""
    lane = roster.lane(attempt(action(name, instances)))
    lane.waiting.extend(attempt(lane.action) for _ in range(count))
    roster.wish(lane)
    return lane


def start(roster: Roster, lane: Lane) -> Worker:
    worker = Worker(roster.live + 1, lane, cast(Link, None), 0, started=0.0, deadline=math.inf)
    roster.begins(worker)
    roster.wish(lane)
    return worker


def starts(roster: Roster) -> list[str]:
    """Start what may be started; whose workers these are."""
    names = []
    while (lane := roster.next_start()) is not None:
        start(roster, lane)
        names.append(lane.action.name)
    return names


def run(roster: Roster, worker: Worker, turn_ends: float = 0.0) -> Worker:
    """Bring a starting worker to work on the lane's next attempt."""
    roster.ready(worker, turn_ends)
    roster.busy(worker, worker.lane.waiting.popleft())
    return worker


def test_workers_are_started_as_attempts_wait_and_not_more() -> None:
    roster = Roster(4)
    wait(roster, "a", 2)
    assert starts(roster) == ["a", "a"]
    wait(roster, "b", 1)
    wait(roster, "a", 1)
    assert starts(roster) == ["b", "a"]
    wait(roster, "c", 5)
    assert starts(roster) == []


def test_who_has_fewest_workers_comes_first() -> None:
    roster = Roster(4)
    wait(roster, "a", 9)
    wait(roster, "b", 2)
    wait(roster, "c", 1)
    assert starts(roster) == ["a", "b", "c", "a"]


def test_an_action_s_own_limit() -> None:
    roster = Roster(4)
    wait(roster, "a", 9, instances=2)
    assert starts(roster) == ["a", "a"]
    assert Roster(4).lane(attempt(action("b", instances=9))).workers_max == 4


def test_the_last_used_idle_worker_wakes_first_and_the_oldest_is_known() -> None:
    roster = Roster(4)
    lane = wait(roster, "a", 2)
    first, second = [run(roster, start(roster, lane)) for _ in range(2)]
    assert roster.wake(lane) is None
    roster.rests(first, now=1.0)
    roster.rests(second, now=2.0)
    assert roster.oldest_idle() is first
    assert roster.wake(lane) is second
    assert roster.wake(lane) is first
    assert roster.oldest_idle() is None


def test_idle_workers_make_room_as_many_as_are_needed() -> None:
    roster = Roster(2)
    lane = wait(roster, "a", 2)
    workers = [run(roster, start(roster, lane)) for _ in range(2)]
    for worker in workers:
        roster.rests(worker, now=0.0)
    assert roster.make_room() is None
    wait(roster, "b", 1)
    assert roster.next_start() is None
    assert roster.make_room() is workers[0]
    roster.leaves(workers[0])
    assert roster.make_room() is None, "one leaves already"
    assert starts(roster) == [], "but it is not gone yet"
    roster.gone(workers[0])
    assert starts(roster) == ["b"]
    assert roster.make_room() is None


@pytest.mark.parametrize(("now", "yields"), [(0.9, False), (1.0, True)])
def test_a_busy_worker_yields_when_its_turn_is_over(now: float, yields: bool) -> None:
    roster = Roster(1)
    lane = wait(roster, "a", 3)
    worker = run(roster, start(roster, lane), turn_ends=1.0)
    assert not roster.must_yield(worker, 5.0), "nobody else waits"
    wait(roster, "b", 1)
    assert roster.must_yield(worker, now) is yields


def test_who_waits_with_as_many_workers_gets_no_more() -> None:
    roster = Roster(4)
    a, b = wait(roster, "a", 9), wait(roster, "b", 9)
    assert starts(roster) == ["a", "b", "a", "b"]
    lone = Roster(3)
    a, b = wait(lone, "a", 9), wait(lone, "b", 9)
    workers = [run(lone, start(lone, lane)) for lane in (a, a, b)]
    assert not any(lone.must_yield(worker, 9.0) for worker in workers), "2 against 1: exchanging them gains nothing"
    wait(lone, "c", 1)
    assert lone.must_yield(workers[2], 9.0)
    lone.leaves(workers[2])
    assert lone.must_yield(workers[0], 9.0), "b, with none left, wants one as well"


def test_what_failed_to_start_is_asked_for_again() -> None:
    roster = Roster(2)
    lane = wait(roster, "a", 2)
    worker = start(roster, lane)
    roster.gone(worker)
    assert starts(roster) == ["a", "a"]


def test_a_lane_is_forgotten_when_nothing_is_left_of_it() -> None:
    roster = Roster(2)
    lane = wait(roster, "a", 1)
    assert not roster.forget(lane)
    worker = run(roster, start(roster, lane))
    assert not roster.forget(lane)
    roster.gone(worker)
    assert roster.forget(lane)
    assert roster.lane(attempt(lane.action)) is not lane
    assert roster.live == 0
