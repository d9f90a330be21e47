"""`radprobe tune`: its pace against the bare training step, and real X-rays by every method.

    python -m benchmarks.tune pace [--names ...] [--methods finetune lora] [--device cuda:0]
    RADPROBE_REAL_DATA=DIR python -m benchmarks.tune xrays [--name NAME --weights FILE --size PX]
    RADPROBE_REAL_DATA=DIR python -m benchmarks.tune repeat [--runs 10] [--work DIR]

pace: `bare` is forward, backward and step on one batch of tensors that lies on the device, as
`tune` makes it, and nothing else; `tune` is a run on real DICOM files, less what comes before its
first step and after its last. Networks have random weights of the real shape. Memory is the GPU's.

xrays: covid against the rest on one split by patient: probe, fine-tuning, LoRA, BitFit and norms,
each in a process of its own; then a run that is killed (-9) twice and resumed is held against one
that was not. Images that are there twice under other patients' ids are left out, by name. Without
--weights the network is untrained, and every table says so.

repeat: one question, asked so many times straight and as many times killed (-9) twice within an
epoch and resumed, in processes of its own: how many different weights and scores come of it, told
after each run. By default ViT-S and LoRA, on few patients and in few steps: it is the network that
must have its real size. With --work it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from benchmarks.images import write_images
from pipeline.backbones.load import load_backbone
from pipeline.config.heads import TUNED
from pipeline.config.root import Config
from pipeline.config.tuning import FineTune, Lora, Tuning
from pipeline.extract import extract
from pipeline.extraction.embed import Speed
from pipeline.tune import tune
from pipeline.tuning.network import TunableNetwork, make_trainable, parameter_groups

RADPROBE = [sys.executable, "-c", "from pipeline.cli import main; main()"]
# Images that are there twice under other patients' ids.
COPIES = frozenset(f"images/cxr_{i:03}.jpg" for i in (5, 7, 21, 24, 171, 172, 173, 174))
SETTINGS: dict[str, type[Tuning]] = {"finetune": FineTune, "lora": Lora}


# --- pace ------------------------------------------------------------------------------------


def pace(args: argparse.Namespace) -> None:
    """Print images a second and memory, bare and by `tune`."""
    cuda = args.device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        print("No GPU here: nothing was measured. Run the same command where there is one.")
        return
    print(f"on {torch.cuda.get_device_name(args.device) if cuda else 'the CPU'}, {args.precision}")
    head = ("method", "at once", "bare/s", "tune/s", "ratio", "bare MiB", "tune MiB")
    print(f"{'network':>16}" + "".join(f"{title:>10}" for title in head))
    for name in args.names:
        for method in args.methods:
            bare, bare_mib = bare_step(name, method, args)
            ours, ours_mib = whole(name, method, args)
            cells = (method, args.at_once, f"{bare:.1f}", f"{ours:.1f}", f"{ours / bare:.3f}")
            memory = (f"{bare_mib:.0f}", f"{ours_mib:.0f}") if cuda else ("-", "-")
            row = "".join(f"{cell:>10}" for cell in (*cells, *memory))
            print(f"{name[-16:]:>16}{row}", flush=True)


def settings_of(method: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return a block of the config: one epoch, a step of one batch."""
    return {
        "epochs": 1,
        "batch": args.at_once,
        "at_once": args.at_once,
        "precision": args.precision,
    }


def bare_step(name: str, method: str, args: argparse.Namespace) -> tuple[float, float]:
    """Return images a second of steps on one batch of tensors, and MiB at most."""
    settings = SETTINGS[method](**settings_of(method, args))
    backbone = load_backbone(
        name, args.weights, image_size=args.size, blocks=1, device=args.device,
        precision=args.precision,
    )  # fmt: skip
    head = nn.Linear(2 * backbone.architecture.dim, 1).to(args.device)
    network = TunableNetwork(backbone, head, "cls+mean")
    make_trainable(network, settings)
    optimizer = torch.optim.AdamW(parameter_groups(network, settings))
    x = torch.randn((args.at_once, 3, args.size, args.size), device=args.device)
    each = torch.eye(args.at_once, device=args.device)
    truth = torch.ones((args.at_once, 1), device=args.device)
    network.switch_dropout(True)

    def step() -> None:
        loss = nn.functional.binary_cross_entropy_with_logits(network(x, each), truth)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(2):
        step()
    _settle(args.device, reset=True)
    began = time.perf_counter()
    for _ in range(args.steps):
        step()
    _settle(args.device)
    spent = time.perf_counter() - began
    return args.at_once * args.steps / spent, _mib(args.device)


def whole(name: str, method: str, args: argparse.Namespace) -> tuple[float, float]:
    """Return images a second of `tune` between its first step and its last, and MiB at most."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        # A fifth tests and a fifth validates.
        number = (args.steps + 1) * args.at_once * 5 // 3
        write_images(root / "images", "dicom", number)
        files = sorted(p.relative_to(root).as_posix() for p in (root / "images").rglob("0*"))
        with (root / "labels.csv").open("w", newline="") as file:
            rows = [[path, f"p{i}", i % 2] for i, path in enumerate(files)]
            csv.writer(file).writerows([["path", "patient", "sick"], *rows])
        config = Config.model_validate(
            {
                "data": {"root": root, "include": ["images/**"]},
                "backbone": {"name": name, "weights": args.weights, "image_size": args.size},
                "outputs": {"blocks": 1},
                "store": root / "store",
                "labels": {"file": root / "labels.csv", "patient": "patient", "headers": "ignore"},
                "split": {"allow": ["duplicates", "near-duplicates"]},
                "tasks": {"sick": {"labels": ["sick"]}},
                method: settings_of(method, args),
            }
        )
        extract(config, Speed(device=args.device))
        marks: list[tuple[int, float]] = []
        (result,) = tune(
            config,
            device=args.device,
            workers=args.workers,
            progress=lambda _, done, __: marks.append((done, time.perf_counter())),
        )
        (first, began), (last, ended) = marks[0], marks[-1]
        rate = (last - first) * args.at_once / (ended - began)
        return rate, result.tuned[0].peak_bytes / 2**20


def _settle(device: str, *, reset: bool = False) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        if reset:
            torch.cuda.reset_peak_memory_stats(device)


def _mib(device: str) -> float:
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.startswith("cuda") else 0.0


# --- X-rays ----------------------------------------------------------------------------------


def xrays(args: argparse.Namespace) -> None:
    """Print scores, sizes, times, what moved, and what a killed run came to."""
    root = Path(os.environ["RADPROBE_REAL_DATA"]) / "cxr"
    work = args.work or Path(tempfile.mkdtemp(prefix="tune-"))
    work.mkdir(parents=True, exist_ok=True)
    config = write_config(root, work, args)
    run("extract", str(config), "--device", args.device)
    found = {"probe": json.loads(run("probe", str(config), "--json"))}
    for method in args.methods:
        options = ("--method", method, "--device", args.device, "--json")
        found[method] = json.loads(run("tune", str(config), *options))
    head = ("AUROC", "seconds", "trained", "head", "moved", "epoch", "peak MiB")
    (counts,) = {json.dumps(results[0]["counts"]["test"]) for results in found.values()}
    print(f"{args.name}, {args.weights}, {args.size} px; test: {counts}")
    print(f"{'method':>10}{head[0]:>22}" + "".join(f"{title:>12}" for title in head[1:]))
    for method, (result,) in found.items():
        auroc = result["scores"][0]["metrics"]["auroc"]
        span = f"{auroc['value']:.3f} [{auroc['low']:.2f}, {auroc['high']:.2f}]"
        cells = [f"{result['seconds']:.1f}"]
        for each in result["tuned"]:
            sizes = [f"{each['trained']:,}", f"{each['head']:,}", len(each["moved"])]
            epoch, peak = f"{each['epoch']} of {len(each['history'])}", each["peak_bytes"] / 2**20
            cells = [*cells, *sizes, epoch, f"{peak:.0f}"]
        print(f"{method:>10}{span:>22}" + "".join(f"{cell:>12}" for cell in cells))
    for method in args.methods:
        for note in found[method][0]["notes"]:
            print(f"{method}: {note}")
    for method in args.methods:
        print(f"moved by {method}: {', '.join(found[method][0]['tuned'][0]['moved'][:8])}, ...")
    killed(config, args, found[args.methods[-1]][0])


def write_config(root: Path, work: Path, args: argparse.Namespace) -> Path:
    """Write labels and config; return the config."""
    with (root / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (work / "labels.csv").open("w", newline="") as file:
        kept = [
            [row["image"], row["patient_id"], "covid" if row["label"] == "covid" else "rest"]
            for row in rows
            if row["image"] not in COPIES
        ]
        some = _few(kept, args.patients)
        csv.writer(file).writerows([["path", "patient", "covid"], *some])
    at_once = min(8, args.batch)
    block = {
        "epochs": args.epochs,
        "batch": args.batch,
        "at_once": at_once,
        "patience": args.epochs,
    }
    content = {
        "data": {
            "root": str(root),
            "include": [path for path, *_ in some],
            "modality": {"**": "DX"},
        },
        "backbone": {"name": args.name, "weights": args.weights, "image_size": args.size},
        "store": "store",
        "labels": {"file": "labels.csv", "patient": "patient"},
        "tasks": {"covid": {"labels": ["covid"], "positive": "covid"}},
        **dict.fromkeys(args.methods, block),
    }
    (work / "config.yaml").write_text(yaml.safe_dump(content))
    return work / "config.yaml"


def _few(rows: list[list[str]], patients: int | None) -> list[list[str]]:
    """Return the rows of so many patients, the first of either kind in turn; all if None."""
    kinds = [dict.fromkeys(r[1] for r in rows if r[2] == kind) for kind in ("covid", "rest")]
    turns = [name for pair in itertools.zip_longest(*kinds) for name in pair if name]
    wanted = set(list(dict.fromkeys(turns))[:patients])
    return [row for row in rows if row[1] in wanted]


def killed(config: Path, args: argparse.Namespace, straight: dict[str, Any]) -> None:
    """Kill a run twice, resume it, and hold it against one that was not killed."""
    method, store = args.methods[-1], config.parent / "store"
    for file in (store / "results").glob(f"{method}-*"):
        file.unlink()
    options = ("--method", method, "--device", args.device, "--json", "--checkpoint-s", "0")
    after = straight["tuned"][0]["seconds"] / 4
    for _ in range(2):
        kill_after_a_checkpoint(config, store, options, after)
    (result,) = json.loads(run("tune", str(config), *options))
    (tuned,) = result["tuned"]
    same = tuned["identity"] == straight["tuned"][0]["identity"]
    scores = result["scores"] == straight["scores"]
    print(
        f"{method} killed twice, gone on {tuned['resumed']} times: weights "
        f"{'equal bit for bit' if same else 'DIFFER'}, scores {'equal' if scores else 'DIFFER'}"
    )


def kill_after_a_checkpoint(
    config: Path, store: Path, options: tuple[str, ...], seconds: float
) -> None:
    """Start to tune, and kill that so many seconds after its first checkpoint is there."""
    seen, deadline = _checkpoints(store), time.monotonic() + 600
    process = subprocess.Popen(
        [*RADPROBE, "tune", str(config), *options], stdout=subprocess.DEVNULL
    )
    while _checkpoints(store) == seen and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()


def repeat(args: argparse.Namespace) -> None:
    """Print how many different weights and scores come of runs that were and were not killed."""
    root = Path(os.environ["RADPROBE_REAL_DATA"]) / "cxr"
    work = args.work or Path(tempfile.mkdtemp(prefix="repeat-"))
    work.mkdir(parents=True, exist_ok=True)
    # Threads that wait without turning give way to each other, and to what else the machine does.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    config = write_config(root, work, args)
    run("extract", str(config), "--device", args.device)
    (method,) = args.methods
    store, outcomes = work / "store", work / "outcomes.jsonl"
    options = ("--method", method, "--device", args.device, "--json", "--checkpoint-s", "0")
    print(
        f"{args.name}, {args.weights}, {method}, {args.size} px, threads: {torch.get_num_threads()}"
    )
    for number in range(len(_outcomes(outcomes)), 2 * args.runs):
        kind, kills = (("straight", 0), ("resumed", 2))[number % 2]
        began = time.perf_counter()
        _forget(store, method)
        for _ in range(kills):
            kill_after_a_checkpoint(config, store, options, 0.0)
        (result,) = json.loads(run("tune", str(config), *options))
        (tuned,) = result["tuned"]
        assert tuned["resumed"] == kills, f"killed {kills} times, gone on {tuned['resumed']} times"
        outcome = {
            "kind": kind,
            "weights": tuned["identity"],
            "scores": result["scores"],
            "seconds": round(time.perf_counter() - began),
        }
        with outcomes.open("a") as file:
            file.write(json.dumps(outcome) + "\n")
        _tell(_outcomes(outcomes))


def _outcomes(file: Path) -> list[dict[str, Any]]:
    """Return what came of the runs so far, in their order."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _tell(outcomes: list[dict[str, Any]]) -> None:
    """Print how many different weights and scores the runs of either kind, and all, came to."""
    last = outcomes[-1]
    print(f"{last['kind']} in {last['seconds']} s: {last['weights']}", flush=True)
    for kinds in (["straight"], ["resumed"], ["straight", "resumed"]):
        some = [each for each in outcomes if each["kind"] in kinds]
        weights = {each["weights"] for each in some}
        scores = {json.dumps(each["scores"]) for each in some}
        print(
            f"  {' and '.join(kinds)}: {len(some)} runs, weights {len(weights)}, "
            f"scores {len(scores)} (wanted 1)",
            flush=True,
        )


def _forget(store: Path, method: str) -> None:
    """Take a method's answers, networks and state out of a store."""
    for file in (store / "results").glob(f"{method}-*"):
        file.unlink()
    for folder in ("tuned", "runs"):
        shutil.rmtree(store / folder, ignore_errors=True)


def _checkpoints(store: Path) -> list[int]:
    return [p.stat().st_mtime_ns for p in (store / "runs").glob("*/all/checkpoint.safetensors")]


def run(*arguments: str) -> str:
    """Run radprobe in a process of its own; return what it printed."""
    done = subprocess.run([*RADPROBE, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    parts = words.add_subparsers(required=True)
    timed = parts.add_parser("pace")
    timed.add_argument("--names", nargs="+", default=["dinov2_vitl14"])
    timed.add_argument("--methods", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    timed.add_argument("--device", default="cuda:0", help="cpu tries the script itself")
    timed.add_argument("--weights", default="random:0")
    timed.add_argument("--size", type=int, default=224)
    timed.add_argument("--at-once", type=int, default=32)
    timed.add_argument("--steps", type=int, default=50)
    timed.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    timed.add_argument("--workers", type=int)
    timed.set_defaults(do=pace)
    shown = parts.add_parser("xrays")
    shown.add_argument("--name", default="dinov2_vits14")
    shown.add_argument("--weights", default="random:0")
    shown.add_argument("--size", type=int, default=84)
    shown.add_argument("--epochs", type=int, default=5)
    shown.add_argument("--batch", type=int, default=16)
    shown.add_argument("--patients", type=int, help="so many, of either kind in turn; else all")
    shown.add_argument("--methods", nargs="+", default=list(TUNED))
    shown.add_argument("--device", default="cpu")
    shown.add_argument("--work", type=Path)
    shown.set_defaults(do=xrays)
    asked = parts.add_parser("repeat")
    asked.add_argument("--name", default="dinov2_vits14")
    asked.add_argument("--weights", default="random:0")
    asked.add_argument("--size", type=int, default=84)
    asked.add_argument("--epochs", type=int, default=1)
    asked.add_argument("--batch", type=int, default=2)
    asked.add_argument("--patients", type=int, default=8)
    asked.add_argument("--methods", nargs=1, default=["lora"])
    asked.add_argument("--device", default="cpu")
    asked.add_argument("--runs", type=int, default=10)
    asked.add_argument("--work", type=Path)
    asked.set_defaults(do=repeat)
    args = words.parse_args()
    args.do(args)


if __name__ == "__main__":
    main()
