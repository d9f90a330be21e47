"""Several hosts that share a folder, one of which is cut off and brought back.

    .venv/bin/python -m benchmarks.hosts        (as root: it makes network namespaces)

Three network namespaces with addresses and host names of their own, behind a bridge in a fourth:
the first has the scheduler and `radprobe extract`, each other one a worker. In mid-run the link of
the last is taken down for --cut seconds. The store must be that of one process, bit for bit.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.tiny import write_setup
from stores import FeatureStore
from stores.verify import verify
from tests.pipeline.processes import (
    ROOT,
    bit_equal,
    committed,
    ended,
    environment,
    extraction,
    opened,
    until,
)

HOSTS = ("rp-one", "rp-two", "rp-three")
HUB, NET, PORT = "rp-hub", "10.77.0", 8786
SCHEDULER = f"tcp://{NET}.1:{PORT}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cost", type=float, default=0.7, help="seconds a slice, at least")
    options.add_argument("--cut", type=float, default=45.0, help="seconds without a network")
    args = options.parse_args()
    if os.geteuid() != 0:
        print("skipped: network namespaces need root")
        return
    with tempfile.TemporaryDirectory() as folder, hosts():
        root = Path(folder)
        config = write_setup(root, patients=20, part_rows=4)
        ended(extraction(config, root / "calm"))
        began = time.perf_counter()
        said = disturbed(config, root / "store", args.cost, args.cut)
        calm, store = FeatureStore.open(root / "calm"), FeatureStore.open(root / "store")
        findings = [f for f in verify(store.path).findings if f.kind != "duplicate"]
        equal = bit_equal(calm, store)
        print(f"{said}; {time.perf_counter() - began:.0f} s in all")
        by = Counter(receipt.by.partition(":")[0] for receipt in committed(store).values())
        print(f"parts by host: {dict(sorted(by.items()))} of {len(committed(calm))}")
        print(f"{'bit-equal' if equal else 'OTHER BITS'}, verify {findings or 'clean'}")
    sys.exit(not equal or bool(findings))


def disturbed(config: Path, path: Path, cost_s: float, cut_s: float) -> str:
    """Extract on all hosts and cut the last one off meanwhile; say what was seen of it."""
    scheduler = f"{sys.executable} -m distributed.cli.dask_scheduler --no-dashboard"
    worker = f"{sys.executable} -m distributed.cli.dask_worker {SCHEDULER} --nthreads 1 --no-nanny"
    worker += f" --no-dashboard --local-directory {config.parent}/scratch"
    extract = [sys.executable, "-c", "from pipeline.cli import main; main()", "extract"]
    extract += [str(config), "--store", str(path), "--scheduler", SCHEDULER, "--device", "cpu"]
    extract += ["--batch-size", "4", "--workers", "1", "--json"]
    with contextlib.ExitStack() as stack:

        def start(host: str, command: str) -> subprocess.Popen[str]:
            return stack.enter_context(on(host, command, cost_s))

        start(HOSTS[0], f"{scheduler} --host {NET}.1 --port {PORT}")
        for host in HOSTS[1:]:
            start(host, f"while :; do {worker}; sleep 1; done")
        run = start(HOSTS[0], shlex.join(extract))
        store = opened(path)
        parts = len(until(store.missing))

        def of_last() -> int:
            receipts = committed(store).values()
            return sum(r.by.startswith(f"{HOSTS[-1]}:") for r in receipts)

        until(lambda: len(committed(store)) > parts / 5 and of_last())
        before, cut_at = of_last(), len(committed(store))
        ip("-n", HUB, "link", "set", HOSTS[-1], "down")
        time.sleep(cut_s)
        during, back_at = of_last(), len(committed(store))
        ip("-n", HUB, "link", "set", HOSTS[-1], "up")
        summary = ended(run)
        return (
            f"cut off at {cut_at} parts for {cut_s:g} s ({back_at} then): {HOSTS[-1]} had done "
            f"{before}, committed {during - before} more while cut off and "
            f"{of_last() - during} after; {summary['embedded']} slices counted, "
            f"{len(summary['parts_failed'])} parts failed"
        )


@contextlib.contextmanager
def on(host: str, command: str, cost_s: float) -> Iterator[subprocess.Popen[str]]:
    """Run a command on a host; what is left of it ends with the context."""
    named = f"hostname {host}; {command}"
    process = subprocess.Popen(
        ["ip", "netns", "exec", host, "unshare", "--uts", "bash", "-c", named],
        env=environment(cost_s), cwd=ROOT, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@contextlib.contextmanager
def hosts() -> Iterator[None]:
    """Make the namespaces, joined by a bridge that nothing else is joined to."""
    remove()
    try:
        for name in (HUB, *HOSTS):
            ip("netns", "add", name)
        ip("-n", HUB, "link", "add", "bridge", "type", "bridge")
        ip("-n", HUB, "link", "set", "bridge", "up")
        for number, host in enumerate(HOSTS, 1):
            ip("-n", host, "link", "add", "eth0", "type", "veth", "peer", host, "netns", HUB)
            ip("-n", HUB, "link", "set", host, "master", "bridge", "up")
            ip("-n", host, "address", "add", f"{NET}.{number}/24", "dev", "eth0")
            ip("-n", host, "link", "set", "eth0", "up")
            ip("-n", host, "link", "set", "lo", "up")
        yield
    finally:
        remove()


def remove() -> None:
    """Remove the namespaces that are there."""
    for name in (*HOSTS, HUB):
        subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL, check=False)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


if __name__ == "__main__":
    main()
