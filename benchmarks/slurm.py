"""An array job of `radprobe slurm` under a real SLURM on this machine, disturbed twice.

    .venv/bin/python -m benchmarks.slurm        (as root, with Debian's slurmctld, slurmd, munge)

A controller and one node of eight cores are started with a configuration and a key of their own,
and end with the run. Of the script as printed only what names a GPU and a node's size is taken out.
Four tasks run at a time: one is queued again by `scontrol requeue` (SIGTERM, as in a preemption;
SLURM lets two minutes pass), one is killed (-9). The store must be one process's, bit for bit.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.tiny import write_setup
from stores import FeatureStore
from stores.verify import verify
from tests.pipeline.processes import (
    ROOT,
    at_work,
    bit_equal,
    committed,
    ended,
    environment,
    extraction,
    opened,
    until,
)

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue")
CODE = "import tests.pipeline.slow; from pipeline.cli import main; main()"
SITE = """\
ClusterName=radprobe
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
KillWait=30
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 Boards=1 SocketsPerBoard=1 CoresPerSocket=8 \
ThreadsPerCore=1 RealMemory=8000 State=UNKNOWN
PartitionName=here Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cost", type=float, default=0.5, help="seconds a slice, at least")
    args = options.parse_args()
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        sys.exit(f"skipped: {', '.join(missing)} not found (Debian: slurmctld slurmd munge)")
    if os.geteuid() != 0:
        sys.exit("skipped: slurmd starts tasks as root only")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        config = write_setup(root, patients=20, part_rows=4)
        ended(extraction(config, root / "calm"))
        with cluster(root / "slurm") as site:
            began = time.perf_counter()
            print(disturbed(config, root / "store", {**environment(args.cost), **site}))
            print(f"{time.perf_counter() - began:.0f} s in all")
        calm, store = FeatureStore.open(root / "calm"), FeatureStore.open(root / "store")
        findings = [f for f in verify(store.path).findings if f.kind != "duplicate"]
        equal = bit_equal(calm, store)
        print(f"{len(committed(store))} of {len(committed(calm))} parts, ", end="")
        print(f"{'bit-equal' if equal else 'OTHER BITS'}, verify {findings or 'clean'}")
    sys.exit(not equal or bool(findings))


def disturbed(config: Path, path: Path, env: dict[str, str]) -> str:
    """Submit the array, queue one task again and kill another at work; wait for its end."""
    script = config.with_suffix(".sbatch")
    script.write_text(for_this_site(printed(config), config.parent))
    job = told(env, "sbatch", "--parsable", str(script)).strip()
    store = opened(path)
    until(lambda: len(committed(store)) >= 5 and len(at_work(store)) >= 3)
    told(env, "scontrol", "requeue", f"{job}_1")
    until(lambda: len(committed(store)) >= 15 and len(at_work(store)) >= 2)
    os.kill(at_work(store)[0], signal.SIGKILL)
    until(lambda: not told(env, "squeue", "--noheader", "--jobs", job).strip())
    by: dict[str, int] = {}
    for receipt in committed(store).values():
        by[receipt.by] = by.get(receipt.by, 0) + 1
    return (
        f"job {job}: four tasks, one queued again, one killed; parts by process: {[*by.values()]}"
    )


def printed(config: Path) -> str:
    """Return what `radprobe slurm` prints."""
    command = [sys.executable, "-c", "from pipeline.cli import main; main()"]
    done = subprocess.run(
        [*command, "slurm", str(config), "--tasks", "4"],
        check=True, capture_output=True, text=True, env=environment(0), cwd=ROOT,
    )  # fmt: skip
    return done.stdout


def for_this_site(script: str, folder: Path) -> str:
    """Return the script without GPUs and a node's size, by a command whose network takes time."""
    slow = folder / "radprobe"
    slow.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{CODE}" "$@" --device cpu --workers 1\n')
    slow.chmod(0o755)
    script = re.sub(r"^#SBATCH --(gpus-per-node|mem|cpus-per-task)=.*\n", "", script, flags=re.M)
    script = script.replace("--output=", f"--output={folder}/")
    return re.sub(r"^radprobe=.*$", f"radprobe={slow}", script, flags=re.M)


def told(env: dict[str, str], *command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=env, cwd=ROOT)
    return done.stdout


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Start SLURM with all it writes in a folder; give what its commands need to be told."""
    folder.mkdir()
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    site = folder / "slurm.conf"
    controller, node = free_ports()
    host = socket.gethostname().partition(".")[0]
    site.write_text(SITE.format(folder=folder, host=host, controller=controller, node=node))
    env = {**os.environ, "SLURM_CONF": str(site)}
    munge = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket"]
    munge += [
        f"--key-file={key}",
        f"--pid-file={folder}/munged.pid",
        f"--log-file={folder}/munge.log",
    ]
    munge += [f"--seed-file={folder}/munge.seed"]
    with contextlib.ExitStack() as stack:
        for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D", "-N", host]):
            stack.enter_context(running(command, env, folder / "daemons.log"))
            time.sleep(1.0)  # each looks for the one before when it starts
        until(lambda: "idle" in told(env, "sinfo", "--noheader", "--format=%T"))
        yield {"SLURM_CONF": str(site)}


def free_ports() -> list[int]:
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in (one, other)]


@contextlib.contextmanager
def running(command: list[str], env: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("ab") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=out)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
