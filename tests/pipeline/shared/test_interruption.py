"""A process that is told to end ends in order, however often it is told."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Iterator

import pytest

from pipeline import cli
from pipeline.shared import interruption
from pipeline.shared.interruption import end_in_order, leaving_behind, pass_over
from stores.errors import WeightsError

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put the handlers back that the tests run with."""
    monkeypatch.setattr(interruption, "_code", None)
    before = {number: signal.getsignal(number) for number in NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_only_the_first_signal_is_heard_on_the_way_out(number: int, code: int) -> None:
    said: list[str] = []
    given_back: list[bool] = []

    def told_thrice() -> None:
        try:
            signal.raise_signal(number)
        finally:
            for each in NUMBERS:
                signal.raise_signal(each)
            given_back.append(True)

    end_in_order(*NUMBERS, say=lambda: said.append("Interrupted."))
    with pytest.raises(SystemExit) as ended:
        told_thrice()
    assert given_back
    assert ended.value.code == code
    assert said == ["Interrupted."]


def test_what_takes_an_interruption_for_a_fault_does_not_hide_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As compiled code does that reads weights when the signal comes."""

    def app(*_: object, **__: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except SystemExit:
            raise WeightsError("'model.safetensors' is damaged; get it again.") from None

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    said = capsys.readouterr().err
    assert "Interrupted" in said
    assert "damaged" not in said


def test_a_signal_ends_a_process_whose_way_out_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    pass_over(*NUMBERS)
    signal.raise_signal(signal.SIGINT)
    assert codes == []
    monkeypatch.setattr(interruption, "PATIENCE_S", -1.0)
    signal.raise_signal(signal.SIGTERM)
    assert codes == [143]


def test_a_signal_behind_the_last_word_of_a_command_is_no_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["radprobe", "--version"])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # put back at the end
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    for number in NUMBERS:  # while Python ends its threads, and would print a traceback
        signal.raise_signal(number)


def test_an_interruption_says_what_the_outermost_work_leaves(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with leaving_behind(lambda: "Nothing is kept."), leaving_behind(lambda: "All is kept."):
        cli._say_interrupted()
    cli._say_interrupted()
    assert capsys.readouterr().err == (
        "Interrupted. Nothing is kept.\n"
        "Interrupted. What was committed is kept; the same command goes on from there.\n"
    )
