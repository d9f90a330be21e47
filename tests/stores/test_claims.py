from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stores._disk import is_orphan, temporary_name
from stores.claims import STALE_AFTER_S, exclusive, holders, owner, stems, try_claim


def test_a_claim_is_exclusive_until_released(tmp_path: Path) -> None:
    claim = try_claim(tmp_path, "p")
    assert claim is not None
    assert claim.stands()
    assert try_claim(tmp_path, "p") is None
    assert owner(tmp_path, "p") == f"{socket.gethostname()}:{os.getpid()}"
    claim.release()
    assert owner(tmp_path, "p") is None
    assert try_claim(tmp_path, "p") is not None


def test_the_claim_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from stores.claims import try_claim\n"
        "assert try_claim(pathlib.Path(sys.argv[1]), 'p'); print('claimed', flush=True)\n"
        "import signal; signal.pause()"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == b"claimed\n"
    assert try_claim(tmp_path, "p") is None
    child.kill()
    child.wait()
    claim = try_claim(tmp_path, "p")
    assert claim is not None
    claim.release()
    assert list(tmp_path.iterdir()) == []


def test_a_reused_pid_does_not_keep_a_dead_claim(tmp_path: Path) -> None:
    claim = try_claim(tmp_path, "p")
    assert claim is not None
    holder = json.loads(claim.path.read_text())
    claim.path.write_text(json.dumps(holder | {"born": "1"}))  # this pid, born at another time
    assert try_claim(tmp_path, "p") is not None


@pytest.mark.parametrize(("silent_for", "taken"), [(10, False), (STALE_AFTER_S + 10, True)])
def test_another_host_is_dead_when_silent_for_long(
    tmp_path: Path, silent_for: float, taken: bool
) -> None:
    claim = try_claim(tmp_path, "p")
    assert claim is not None
    holder = json.loads(claim.path.read_text())
    claim.path.write_text(json.dumps(holder | {"host": "elsewhere"}))
    then = time.time() - silent_for
    os.utime(claim.path, (then, then))
    assert (try_claim(tmp_path, "p") is not None) is taken
    assert claim.stands() is not taken


def test_a_beat_keeps_the_claim_young(tmp_path: Path) -> None:
    claim = try_claim(tmp_path, "p")
    assert claim is not None
    os.utime(claim.path, (0, 0))
    claim.beat()
    assert time.time() - claim.path.stat().st_mtime < 60


def test_a_latecomer_sees_that_it_was_replaced_and_leaves_the_new_claim(tmp_path: Path) -> None:
    late = try_claim(tmp_path, "p")
    assert late is not None
    holder = json.loads(late.path.read_text())
    late.path.write_text(json.dumps(holder | {"host": "elsewhere"}))
    os.utime(late.path, (0, 0))
    heir = try_claim(tmp_path, "p")
    assert heir is not None
    assert not late.stands()
    late.release()
    assert heir.stands()


def test_a_claim_linked_beside_a_living_one_steps_back(tmp_path: Path) -> None:
    """It was numbered before a release, and another process began anew from nought meanwhile."""
    other = try_claim(tmp_path, "p")
    assert other is not None
    with pytest.MonkeyPatch.context() as patch:
        before = iter([True])  # what it saw of the old claim, before the release
        patch.setattr("stores.claims.dead", lambda path: next(before, False))
        assert try_claim(tmp_path, "p") is None
    assert [path.name for path in tmp_path.iterdir()] == ["p.claim.0"]


def test_a_claim_knows_whether_it_was_inherited(tmp_path: Path) -> None:
    first = try_claim(tmp_path, "p")
    assert first is not None
    assert not first.inherited
    holder = json.loads(first.path.read_text())
    first.path.write_text(json.dumps(holder | {"born": "1"}))
    heir = try_claim(tmp_path, "p")
    assert heir is not None
    assert heir.inherited


@pytest.mark.parametrize("lost", [b"", bytes(120)])
def test_a_claim_that_lost_its_bytes_with_the_power_lapses_at_once(
    tmp_path: Path, lost: bytes
) -> None:
    claim = try_claim(tmp_path, "p")
    assert claim is not None
    claim.path.write_bytes(lost)
    assert owner(tmp_path, "p") is None
    again = try_claim(tmp_path, "p")
    assert again is not None
    assert again.inherited
    again.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "odd", [b"5", b"[1]", b'{"pid": "x"}', b"{", b'"' * 5, b"[" * 10_000, b" " * 70_000]
)
def test_a_file_that_names_no_process_holds_nothing_up(tmp_path: Path, odd: bytes) -> None:
    claim = try_claim(tmp_path, "p")
    assert claim is not None
    claim.path.write_bytes(odd)
    assert holders(tmp_path) == {}
    assert owner(tmp_path, "p") is None
    assert try_claim(tmp_path, "p") is not None


def test_a_claim_of_years_ahead_holds_nothing_up(tmp_path: Path) -> None:
    claim = try_claim(tmp_path, "p")
    assert claim is not None
    made = json.loads(claim.path.read_text()) | {"host": "elsewhere", "time": float("inf")}
    claim.path.write_text(json.dumps(made))
    assert holders(tmp_path)["p"].for_s < 60
    os.utime(claim.path, (2**32, 2**32))
    assert try_claim(tmp_path, "p") is not None


def test_a_claim_that_may_not_be_read_is_somebody_who_falls_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = try_claim(tmp_path, "p")
    assert claim is not None

    def deny(*_: object) -> bytes:
        raise PermissionError

    monkeypatch.setattr("stores.claims.read_file", deny)
    assert try_claim(tmp_path, "p") is None
    assert holders(tmp_path)["p"].name == owner(tmp_path, "p") == "another user's process"
    os.utime(claim.path, (0, 0))
    assert try_claim(tmp_path, "p") is not None


def test_a_process_that_the_system_hides_is_not_taken_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where /proc is mounted with hidepid, and other users write to the store."""
    claim = try_claim(tmp_path, "p")
    temporary = tmp_path / temporary_name("x")
    temporary.touch()
    assert claim is not None

    def hide(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", hide)
    assert try_claim(tmp_path, "p") is None
    assert not is_orphan(temporary)


def test_names_without_a_number_are_nobodys_claims(tmp_path: Path) -> None:
    for name in ("p.claim.x", "p.claim.", "p.claim.²", "q.claim.-1"):
        (tmp_path / name).write_bytes(b"")
    assert holders(tmp_path) == {}
    assert stems(tmp_path) == set()
    assert try_claim(tmp_path, "p") is not None


def put_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


STRANGE: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "link to itself": lambda path: path.symlink_to(path.name),
    "socket": put_socket,
}


@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_no_file_holds_nothing_up(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    STRANGE[kind](Path("p.claim.0"))
    began = time.monotonic()
    assert owner(tmp_path, "p") is None
    assert holders(tmp_path) == {}
    with exclusive(tmp_path, "p") as claim:
        assert claim.path.name == "p.claim.1"
    with exclusive(tmp_path, "p"):
        assert owner(tmp_path, "p") is not None
    assert time.monotonic() - began < 5
