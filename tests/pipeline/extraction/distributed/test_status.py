"""What `radprobe status` and `radprobe slurm` say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.extraction.distributed.shards import Shard, alone
from pipeline.extraction.distributed.slurm import array_script, chain_script
from pipeline.extraction.distributed.status import Failed, status
from pipeline.extraction.distributed.tasks import forget_failures, note_failure
from stores import FeatureStore
from stores.claims import try_claim
from tests.stores.conftest import ARRAYS, fill, slice_table
from tests.waiting import until


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """Return a store of 20 slices in parts of 4, of which one was withdrawn."""
    from stores.slices import FILE_SCHEMA

    store = FeatureStore.create(tmp_path / "store", "{}", ARRAYS, 4)
    rows = slice_table([(i, f"f{i}") for i in range(20)]).to_pylist()
    rows[0]["withdrawn"] = True
    table = slice_table([]).from_pylist(rows, slice_table([]).schema)
    store.write_tables(table, FILE_SCHEMA.empty_table())
    return store


def said(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_how_far_a_store_is(store: FeatureStore) -> None:
    for index in (0, 1):
        fill(store, index)
        then = time.time() - 60 + 30 * index
        os.utime(store.receipts.path(index), (then, then))
    claim = store.claim(store.layout.part(3))
    assert claim is not None
    note_failure(store.path, 4, "ValueError: no")
    found = status(store.path)
    assert (found.slices, found.slices_done, found.parts, found.parts_done) == (19, 7, 5, 2)
    assert sum(found.modalities.values()) == 19  # but for the withdrawn one
    ((part, by),) = [(each.part, each.by) for each in found.running]
    assert part == 3
    assert by.endswith(f":{os.getpid()}")
    assert [(each.part, each.reason.partition(" (")[0]) for each in found.failed] == [
        (4, "ValueError: no")
    ]
    assert found.slices_per_s == pytest.approx(4 / 60, rel=0.05)
    assert found.seconds_left == pytest.approx(12 / (4 / 60), rel=0.05)
    claim.release()


def test_two_shards_of_one_number_say_so(
    store: FeatureStore, caplog: pytest.LogCaptureFixture
) -> None:
    with alone(store, Shard(1, 3)), alone(store, Shard(2, 3)):
        assert caplog.messages == []
        with alone(store, Shard(1, 3)):
            (said,) = caplog.messages
        assert re.search(rf"Shard 1/3 is at work already: \S+:{os.getpid()}\. Both begin", said)
    # What a killed one left goes with the next that ends.
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = try_claim(store.claims, "shard-3-of-3")
    assert left is not None
    owner = json.loads(left.path.read_text())
    left.path.write_text(json.dumps(owner | {"pid": ended.pid, "start": 0}))
    with alone(store, Shard(1, 3)):
        pass
    assert list(store.claims.iterdir()) == []


def test_what_was_done_since_has_not_failed(store: FeatureStore) -> None:
    note_failure(store.path, 4, "ValueError: no")
    note_failure(store.path, 2, "ValueError: no")
    fill(store, 4)
    assert [each.part for each in status(store.path).failed] == [2]
    forget_failures(store)
    assert [path.name for path in (store.path / "runs").iterdir()] == ["0000002.failed.json"]


def test_it_is_said_in_words_and_as_json(store: FeatureStore, tmp_path: Path) -> None:
    FeatureStore.create(tmp_path / "new", "{}", ARRAYS, 4)
    config = tmp_path / "later.yaml"
    config.write_text(f"data: {{root: .}}\nstore: {tmp_path / 'later'}\n")
    assert said("status", str(config)).startswith(f"There is no store at {tmp_path / 'later'} yet")
    assert not json.loads(said("status", str(config), "--json"))["is_there"]
    assert said("status", str(tmp_path / "new")).startswith("No slice is known yet: ")
    fill(store, 0)
    note_failure(store.path, 2, "ValueError: no")
    words = said("status", str(store.path))
    assert "3 of 19 slices done, in 1 of 5 parts." in words
    assert "part 2 failed: ValueError: no" in words
    assert "Nobody is at it" in words
    found = json.loads(said("status", str(store.path), "--json"))
    assert (found["parts_done"], found["running"], found["failed"][0]["part"]) == (1, [], 2)
    claims = [store.claim(store.layout.part(index)) for index in (3, 4)]
    assert f":{os.getpid()}: at part 3, 4 for " in said("status", str(store.path))
    for claim in claims:
        assert claim is not None
        claim.release()
    assert Failed(**found["failed"][0]).reason.startswith("ValueError: no")


# --- slurm --------------------------------------------------------------------------------------

# In the place of radprobe: says what it was given, and ends as it was told by SIGTERM.
STAND_IN = """#!/bin/bash
trap 'echo given back; exit 143' TERM
echo "$@"
[ -e "$(dirname "$0")/at-once" ] && exit 1
touch "$(dirname "$0")/running"
while :; do sleep 0.1; done
"""


def script(tmp_path: Path) -> tuple[Path, Path]:
    """Return a script as a site has edited it, and the config it names."""
    (tmp_path / "data").mkdir()
    config = tmp_path / "my study.yaml"
    config.write_text("data: {root: data}\nstore: store\n")
    text = said("slurm", str(config), "--tasks", "3")
    assert "#SBATCH --array=1-3\n" in text
    stand_in = tmp_path / "radprobe"
    stand_in.write_text(STAND_IN)
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/bash\necho "scontrol $@"\n')
    for path in (stand_in, scontrol):
        path.chmod(0o755)
    (line,) = [line for line in text.splitlines() if line.startswith("radprobe=")]
    path = tmp_path / "my.sbatch"
    path.write_text(text.replace(line, f"radprobe={stand_in}"))
    return path, config


def run_task(path: Path) -> subprocess.Popen[str]:
    task = {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_MAX": "3"}
    place = {"PATH": f"{path.parent}:{os.environ['PATH']}"}
    return subprocess.Popen(
        ["bash", str(path)], env={**os.environ, **task, **place}, stdout=subprocess.PIPE, text=True
    )


def test_a_task_is_one_shard_and_ends_as_it_does(tmp_path: Path) -> None:
    path, config = script(tmp_path)
    (tmp_path / "at-once").touch()
    task = run_task(path)
    words, _ = task.communicate(timeout=30)
    assert words == f"extract {config} --shard 2/3\n"
    assert task.returncode == 1


# In the place of sbatch: keeps the job it is given, says its number, and what it was asked.
SBATCH = """#!/bin/bash
cd "$(dirname "$0")"
echo "$@" >> asked
number=$(wc -l < asked)
cat > "job-$number"
echo "$number"
"""


def test_what_follows_the_array_waits_for_it(tmp_path: Path) -> None:
    config = tmp_path / "my study.yaml"
    path = tmp_path / "my.sh"
    path.write_text(chain_script(config, 3, ["evaluate", "segment"]))
    for name, text in (("sbatch", SBATCH), ("radprobe", STAND_IN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    place = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", path], env=place, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "extract: job 1"
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["--parsable", *["--parsable --dependency=afterany:1"] * 2]
    assert (tmp_path / "job-1").read_text() == array_script(config, 3)
    # What it asks the store, it asks though some images cannot be read.
    job = (tmp_path / "job-3").read_text()
    (line,) = [line for line in job.splitlines() if line.startswith("radprobe=")]
    (tmp_path / "job-3").write_text(job.replace(line, f"radprobe={tmp_path / 'radprobe'}"))
    (tmp_path / "at-once").touch()
    ran = subprocess.run(["bash", tmp_path / "job-3"], capture_output=True, text=True, check=False)
    assert ran.stdout == f"extract {config}\nsegment {config}\n"


@pytest.mark.parametrize(
    ("name", "after"), [("SIGTERM", ""), ("SIGUSR1", "scontrol requeue 77_2\n")]
)
def test_a_task_that_must_end_hands_it_on_and_is_queued_again_where_its_time_is_up(
    name: str, after: str, tmp_path: Path
) -> None:
    import signal

    path, config = script(tmp_path)
    task = run_task(path)
    until((tmp_path / "running").exists, task)
    task.send_signal(getattr(signal, name))
    words, _ = task.communicate(timeout=30)
    assert words == f"extract {config} --shard 2/3\ngiven back\n{after}"
    assert task.returncode == 143
