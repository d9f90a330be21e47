from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from stores.claims import exclusive, stems
from stores.uninterrupted import uninterrupted
from tests.interrupting import interrupted_at


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Have Ctrl-C raise KeyboardInterrupt, whatever a test before has left of it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_within_comes_behind() -> None:
    before = signal.getsignal(signal.SIGINT)
    steps = []

    def work() -> None:
        with uninterrupted():
            with uninterrupted():
                signal.raise_signal(signal.SIGINT)
                steps.append("inner")
            steps.append("outer")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps == ["inner", "outer"]
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_hear_of_no_signals_and_put_none_off() -> None:
    done = []

    def work() -> None:
        with uninterrupted():
            done.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [signal.getsignal(signal.SIGINT)]


def test_a_claim_is_given_back_wherever_an_interruption_comes_between(
    tmp_path: Path,
) -> None:
    def hold() -> None:
        with exclusive(tmp_path, "lock"):
            sys.settrace(None)
            assert stems(tmp_path) == {"lock"}

    line = 1
    while interrupted_at(line, "/stores/claims.py", hold):
        assert not stems(tmp_path), f"interrupted at line {line}, the claim is left"
        line += 1
    assert line > 20


def test_all_handlers_are_given_back_wherever_an_interruption_comes() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def hold() -> None:
        with uninterrupted():
            pass

    line = 1
    while interrupted_at(line, "/stores/uninterrupted.py", hold):
        after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        assert after == before, f"interrupted at line {line}"
        line += 1
    assert line > 10


def test_of_two_signals_put_off_neither_is_lost() -> None:
    came: list[int] = []

    def work() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [signal.SIGTERM]
