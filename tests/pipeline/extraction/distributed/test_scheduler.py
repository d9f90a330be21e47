"""Which part goes where, by tables."""

from __future__ import annotations

import random

import pytest

from pipeline.extraction.distributed.scheduler import (
    ATTEMPTS,
    STRETCH,
    WINDOW,
    Assignment,
    PartScheduler,
)
from pipeline.extraction.distributed.tasks import WorkerOutcome

A, B, C = "tcp://a", "tcp://b", "tcp://c"


@pytest.mark.parametrize(
    ("parts", "workers", "sizes"),
    [
        (1, 1, [1]),
        (8, 1, [2, 2, 1, 1, 1, 1]),
        (8, 64, [1] * 8),
        (600, 2, [64, 64, 59, 52, 46, 40, 35, 30]),
    ],
)
def test_stretches_get_shorter_towards_the_end(parts: int, workers: int, sizes: list[int]) -> None:
    scheduler = PartScheduler(set(range(parts)))
    tasks = list(iter(lambda: scheduler.next(workers), None))
    assert [len(task.parts) for task in tasks][: len(sizes)] == sizes
    assert [index for task in tasks for index in task.parts] == list(range(parts))
    assert max(len(task.parts) for task in tasks) <= STRETCH


FAILED = "ValueError: no"
KILLED = "KilledWorker: died"


@pytest.mark.parametrize(
    ("task", "outcome", "left", "out", "failed"),
    [
        # done, wholly or in part
        ((4, 5), WorkerOutcome(), set(), [], {}),
        ((4, 5), WorkerOutcome(undone=(5,)), {5}, [Assignment((5,))], {}),
        # a stretch that fails goes out part by part
        (
            (4, 5, 6),
            WorkerOutcome(undone=(5, 6), error=FAILED),
            {5, 6},
            [Assignment((5,)), Assignment((6,))],
            {},
        ),
        (
            (4, 5),
            WorkerOutcome(undone=(4, 5), error=KILLED),
            {4, 5},
            [Assignment((4,)), Assignment((5,))],
            {},
        ),
        # what others are at is left to them
        ((4, 5), WorkerOutcome(claimed=(4,)), {4}, [], {}),
        (
            (4, 5),
            WorkerOutcome(claimed=(4,), undone=(5,), error=FAILED),
            {4, 5},
            [Assignment((5,))],
            {},
        ),
    ],
)
def test_what_becomes_of_a_stretch(
    task: tuple[int, ...],
    outcome: WorkerOutcome,
    left: set[int],
    out: list[Assignment],
    failed: dict[int, str],
) -> None:
    scheduler = PartScheduler(set(task))
    (given,) = [Assignment(task)]
    scheduler.fresh.clear()
    done = scheduler.record(given, outcome, A)
    assert set(done) == set(task) - left
    assert (scheduler.left, scheduler.failed) == (left, failed)
    assert list(iter(lambda: scheduler.next(1), None)) == out


def test_a_part_that_fails_by_itself_goes_to_others_and_is_named_at_last() -> None:
    scheduler = PartScheduler({7})
    task, tried = scheduler.next(1), []
    for worker in (A, B, C):
        assert task is not None
        assert list(task.tried) == tried
        scheduler.record(task, WorkerOutcome(undone=(7,), error=f"{FAILED} on {worker}"), worker)
        tried.append(worker)
        task = scheduler.next(1)
    assert task is None
    assert len(tried) == ATTEMPTS
    assert (scheduler.left, scheduler.failed) == (set(), {7: f"{FAILED} on {C}"})


def test_a_part_that_kills_workers_has_one_more_chance_and_no_other() -> None:
    scheduler = PartScheduler({7})
    for _ in range(2):
        task = scheduler.next(1)
        assert task is not None
        scheduler.record(task, WorkerOutcome(undone=(7,), error=KILLED), "")
    assert (scheduler.left, scheduler.failed) == (set(), {7: KILLED})


def test_failures_in_a_row_are_counted_until_a_part_is_done() -> None:
    scheduler = PartScheduler({1, 2, 3})
    for _ in range(ATTEMPTS):
        scheduler.record(
            Assignment((1,), (A,) * (ATTEMPTS - 1)), WorkerOutcome(undone=(1,), error=FAILED), A
        )
    assert scheduler.fails == 1
    scheduler.record(Assignment((2,)), WorkerOutcome(), A)
    assert scheduler.fails == 0


def test_a_part_is_news_once_however_often_it_comes_back() -> None:
    scheduler = PartScheduler({1, 2})
    assert scheduler.record(Assignment((1, 2)), WorkerOutcome(claimed=(2,)), A) == [1]
    assert scheduler.record(Assignment((1, 2)), WorkerOutcome(), B) == [2]
    assert scheduler.record(Assignment((1, 2)), WorkerOutcome(undone=(2,), error=FAILED), C) == []
    assert (scheduler.left, scheduler.claimed, scheduler.failed) == (set(), set(), {})


def test_parts_that_were_claimed_and_are_free_go_out_again() -> None:
    scheduler = PartScheduler({1})
    task = scheduler.next(1)
    assert task is not None
    scheduler.record(task, WorkerOutcome(claimed=(1,)), A)
    assert scheduler.next(1) is None
    scheduler.release(1)
    assert scheduler.next(1) == Assignment((1,))


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_every_part_is_done_or_named(seed: int) -> None:
    """Tasks come back in any order, done, failed, claimed or not at all; part 3 never works."""
    rng = random.Random(seed)
    scheduler, out, news = PartScheduler(set(range(100))), list[Assignment](), list[int]()
    while scheduler.left:
        workers = rng.randint(1, 4)
        while len(out) < WINDOW * workers and (task := scheduler.next(workers)) is not None:
            out.append(task)
        for index in sorted(scheduler.claimed):
            scheduler.release(index)
        if not out:
            continue
        task, luck = out.pop(rng.randrange(len(out))), rng.random()
        stop = rng.randint(0, len(task.parts))
        if 3 in task.parts:
            stop = min(stop, task.parts.index(3))
            luck = 0.3
        rest = task.parts[stop:]
        if luck < 0.2:
            scheduler.give_back(task)
        elif luck < 0.4 and rest:
            broken = (
                WorkerOutcome(undone=rest, error=FAILED)
                if 3 in rest
                else WorkerOutcome(undone=rest)
            )
            news += scheduler.record(task, broken, rng.choice([A, B, C]))
        elif luck < 0.5 and rest:
            news += scheduler.record(task, WorkerOutcome(claimed=rest), A)
        else:
            news += scheduler.record(task, WorkerOutcome(), A)
        if rng.random() < 0.02:
            scheduler.restart()
            out.clear()
    assert sorted(news) == [index for index in range(100) if index != 3]
    assert scheduler.failed.keys() == {3}
