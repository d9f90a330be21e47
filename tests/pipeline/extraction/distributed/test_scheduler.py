"""Which part goes where, by tables."""

from __future__ import annotations

import random

import pytest

from pipeline.extraction.distributed.scheduler import ATTEMPTS, STRETCH, WINDOW, Deal, Task
from pipeline.extraction.distributed.tasks import Outcome

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
    deal = Deal(set(range(parts)))
    tasks = list(iter(lambda: deal.next(workers), None))
    assert [len(task.parts) for task in tasks][: len(sizes)] == sizes
    assert [index for task in tasks for index in task.parts] == list(range(parts))
    assert max(len(task.parts) for task in tasks) <= STRETCH


FAILED = "ValueError: no"
KILLED = "KilledWorker: died"


@pytest.mark.parametrize(
    ("task", "outcome", "left", "out", "failed"),
    [
        # done, wholly or in part
        ((4, 5), Outcome(), set(), [], {}),
        ((4, 5), Outcome(undone=(5,)), {5}, [Task((5,))], {}),
        # a stretch that fails goes out part by part
        ((4, 5, 6), Outcome(undone=(5, 6), error=FAILED), {5, 6}, [Task((5,)), Task((6,))], {}),
        ((4, 5), Outcome(undone=(4, 5), error=KILLED), {4, 5}, [Task((4,)), Task((5,))], {}),
        # what others hold is left to them
        ((4, 5), Outcome(held=(4,)), {4}, [], {}),
        ((4, 5), Outcome(held=(4,), undone=(5,), error=FAILED), {4, 5}, [Task((5,))], {}),
    ],
)
def test_what_becomes_of_a_stretch(
    task: tuple[int, ...],
    outcome: Outcome,
    left: set[int],
    out: list[Task],
    failed: dict[int, str],
) -> None:
    deal = Deal(set(task))
    (given,) = [Task(task)]
    deal.fresh.clear()
    done = deal.take(given, outcome, A)
    assert set(done) == set(task) - left
    assert (deal.left, deal.failed) == (left, failed)
    assert list(iter(lambda: deal.next(1), None)) == out


def test_a_part_that_fails_by_itself_goes_to_others_and_is_named_at_last() -> None:
    deal = Deal({7})
    task, tried = deal.next(1), []
    for worker in (A, B, C):
        assert task is not None
        assert list(task.tried) == tried
        deal.take(task, Outcome(undone=(7,), error=f"{FAILED} on {worker}"), worker)
        tried.append(worker)
        task = deal.next(1)
    assert task is None
    assert len(tried) == ATTEMPTS
    assert (deal.left, deal.failed) == (set(), {7: f"{FAILED} on {C}"})


def test_a_part_that_kills_workers_has_one_more_chance_and_no_other() -> None:
    deal = Deal({7})
    for _ in range(2):
        task = deal.next(1)
        assert task is not None
        deal.take(task, Outcome(undone=(7,), error=KILLED), "")
    assert (deal.left, deal.failed) == (set(), {7: KILLED})


def test_failures_in_a_row_are_counted_until_a_part_is_done() -> None:
    deal = Deal({1, 2, 3})
    for _ in range(ATTEMPTS):
        deal.take(Task((1,), (A,) * (ATTEMPTS - 1)), Outcome(undone=(1,), error=FAILED), A)
    assert deal.fails == 1
    deal.take(Task((2,)), Outcome(), A)
    assert deal.fails == 0


def test_a_part_is_news_once_however_often_it_comes_back() -> None:
    deal = Deal({1, 2})
    assert deal.take(Task((1, 2)), Outcome(held=(2,)), A) == [1]
    assert deal.take(Task((1, 2)), Outcome(), B) == [2]
    assert deal.take(Task((1, 2)), Outcome(undone=(2,), error=FAILED), C) == []
    assert (deal.left, deal.held, deal.failed) == (set(), set(), {})


def test_parts_that_were_held_and_are_free_go_out_again() -> None:
    deal = Deal({1})
    task = deal.next(1)
    assert task is not None
    deal.take(task, Outcome(held=(1,)), A)
    assert deal.next(1) is None
    deal.free(1)
    assert deal.next(1) == Task((1,))


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_every_part_is_done_or_named(seed: int) -> None:
    """Tasks come back in any order, done, failed, held or not at all; part 3 never works."""
    rng = random.Random(seed)
    deal, out, news = Deal(set(range(100))), list[Task](), list[int]()
    while deal.left:
        workers = rng.randint(1, 4)
        while len(out) < WINDOW * workers and (task := deal.next(workers)) is not None:
            out.append(task)
        for index in sorted(deal.held):
            deal.free(index)
        if not out:
            continue
        task, luck = out.pop(rng.randrange(len(out))), rng.random()
        stop = rng.randint(0, len(task.parts))
        if 3 in task.parts:
            stop = min(stop, task.parts.index(3))
            luck = 0.3
        rest = task.parts[stop:]
        if luck < 0.2:
            deal.lost(task)
        elif luck < 0.4 and rest:
            broken = Outcome(undone=rest, error=FAILED) if 3 in rest else Outcome(undone=rest)
            news += deal.take(task, broken, rng.choice([A, B, C]))
        elif luck < 0.5 and rest:
            news += deal.take(task, Outcome(held=rest), A)
        else:
            news += deal.take(task, Outcome(), A)
        if rng.random() < 0.02:
            deal.restart()
            out.clear()
    assert sorted(news) == [index for index in range(100) if index != 3]
    assert deal.failed.keys() == {3}
