"""What a machine with a GPU can do, in one command of at most eight minutes.

    python -m benchmarks.gpu [--only pace knn] [--device cuda:0] [--minutes 8]

Each part prints a table, and all of them are written as JSON under benchmarks/results/. A part that
fails, or for which no time is left, says so, and the others go on. Networks have random weights of
the real shape.

- pace: `bare` is the network alone on tensors that lie on the card, in bfloat16 at its fastest
  batch size: the limit. `whole` is `extract` of real DICOM files, less the time it takes to load
  the network. `peak` is the share of the card's dense bfloat16 peak that bare multiplications
  reach, `busy` the mean utilisation that the driver told during `whole`, `binds` the stage that
  took most.
- kernels: the same network by each way of attention that torch has, with its channels last, with
  weights in bfloat16, through torch.compile, and as a CUDA graph; what pays is kept.
- preprocess: a batch of 512 x 512 slices to what the network sees, by rule: on the card, on a core,
  the largest difference of the two, and its share of the time that ViT-B takes.
- percentiles: by sorting (as they are found on a card), by torch.quantile, by a histogram: what a
  slice takes, the largest difference from NumPy's, and the share of ViT-B's time in bfloat16.
- precision: bfloat16 against float32 on the card: cosines, and 5 nearest neighbours that are kept.
- knn: 10 neighbours among a million of 1,024 numbers: FAISS on the card, torch, FAISS on the cores.
- probe: a logistic probe of 20,000 x 1,024 by scikit-learn's array API, on card and cores.
- memory: a batch for which the card has no room is embedded in halves, with the same features.

It runs from a checkout that is not installed, beside torch, transformers, numpy, pyarrow,
scikit-learn and h5py: benchmarks/gpu.txt lists the wheels that it needs besides. `--device cpu`
tries the script itself, with few of everything.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import os
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.images import write_images
from pipeline.backbones.load import Backbone, load_backbone
from pipeline.config.root import Config
from pipeline.extract import extract
from pipeline.extraction.embed import Speed
from pipeline.inference.forward import Forward, out_of_memory
from pipeline.preprocessing.intensity import sorted_percentiles
from pipeline.preprocessing.prepare import prepare_batch
from pipeline.recipe import Architecture, BatchFeatures, MinMax, Percentiles, Recipe, Window, ZScore
from pipeline.studies.speed import forward_rate
from pipeline.types import Slice

NAMES = tuple(f"dinov2_vit{size}14" for size in "sblg")
SIZES = (224, 518)
BATCHES = (32, 64, 128, 256)
# Dense bfloat16 TFLOP/s by the makers' data sheets: the first name that is part of the card's.
PEAKS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "A10": 125}
MOST_SLICES = 8192  # of a collection: 4 GB of DICOM
RESULTS = Path(__file__).parent / "results"

Row = dict[str, Any]


def main() -> None:
    args = _arguments()
    cuda = args.device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        print("No GPU here: nothing was measured. Run the same command where there is one.")
        return
    logging.disable(logging.WARNING)  # of random weights
    os.environ["SCIPY_ARRAY_API"] = "1"  # before scikit-learn is imported
    card = torch.cuda.get_device_name(args.device) if cuda else "CPU"
    print(f"on {card}, torch {torch.__version__}, {os.cpu_count()} cores")
    until = time.monotonic() + 60 * args.minutes
    results: dict[str, Any] = {"card": card, "torch": torch.__version__, "cores": os.cpu_count()}
    out = args.out or RESULTS / f"gpu-{card.replace(' ', '-')}-{date.today():%Y-%m-%d}.json"
    out.parent.mkdir(exist_ok=True)
    for name in args.only:
        table = Table(name)
        if time.monotonic() > until:
            table.fail("no time was left")
        else:
            run_part(name, args, table, until)
        results[name] = table.rows
        out.write_text(json.dumps(results, indent=1))  # what is there stays, whatever comes
    print(f"\nwritten to {out}")


def _arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    options.add_argument("--names", nargs="+", default=NAMES)
    options.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    options.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    options.add_argument("--slices", type=int, help="of the collection, not by the bare pace")
    options.add_argument("--seconds", type=float, default=8.0, help="of bare forward, in slices")
    options.add_argument("--least", type=float, default=1.0, help="seconds a batch size is run")
    options.add_argument("--minutes", type=float, default=8.0, help="no part begins after them")
    options.add_argument("--device", default="cuda:0", help="cpu tries the script itself")
    options.add_argument("--out", type=Path, help="where the JSON goes")
    return options.parse_args()


class Table:
    """Rows of one part, each printed as soon as it is there."""

    def __init__(self, title: str) -> None:
        self.rows: list[Row] = []
        print(f"\n{title}", flush=True)

    def add(self, **cells: Any) -> None:
        if not self.rows or self.rows[-1].keys() != cells.keys():
            print("".join(f"{name:>16}" for name in cells))
        self.rows.append(cells)
        print("".join(f"{_cell(value):>16}" for value in cells.values()), flush=True)

    def fail(self, why: str) -> None:
        self.rows.append({"failed": why})
        print(f"  failed: {why}", flush=True)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)[-16:]


def run_part(name: str, args: argparse.Namespace, table: Table, until: float) -> None:
    """Measure one part; what goes wrong with it is noted."""
    try:
        PARTS[name](args, table, until)
    except Exception as error:  # one failure does not lose the rest
        table.fail(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
    if args.device.startswith("cuda"):
        torch.cuda.empty_cache()


def _is_small(args: argparse.Namespace) -> bool:
    """Return whether the script is only tried, where there is no card."""
    return not args.device.startswith("cuda")


# --- pace ---------------------------------------------------------------------------------------


def pace(args: argparse.Namespace, table: Table, until: float) -> None:
    """Time every network at every size, alone and in a whole extraction."""
    with tempfile.TemporaryDirectory() as folder:
        files = Files(Path(folder))
        for name in args.names:
            for size in args.sizes:
                if time.monotonic() > until:
                    table.fail(f"no time was left for {name} at {size} px and what follows")
                    return
                table.add(**pace_of(name, size, args, files))


class Files:
    """Real DICOM files, written once and linked into collections of any size."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._written: list[Path] = []

    def of(self, count: int) -> Path:
        """Return a folder with so many slices, no two alike."""
        root = self.folder / f"of-{count}"
        if root.exists():
            return root
        if len(self._written) < count:
            all_of_them = write_images(self.folder / f"images-{count}", "dicom", count)
            self._written = sorted(all_of_them.iterdir())
        root.mkdir()
        for path in self._written[:count]:
            os.link(path, root / path.name)
        return root


def pace_of(name: str, size: int, args: argparse.Namespace, files: Files) -> Row:
    """Measure one network at one size."""
    network = load_backbone(
        name, "random:0", image_size=size, device=args.device, precision="bfloat16"
    )
    batch, bare = fastest(network, args.batches, args.least)
    flops = flops_a_slice(network.architecture, size)
    del network
    slices = args.slices or min(MOST_SLICES, max(2 * batch, int(args.seconds * bare)))
    store = files.folder / f"store-{Path(name).name}-{size}"
    config = Config.model_validate(
        {
            "data": {"root": files.of(slices), "modality": {"**": "CT"}},
            "backbone": {
                "name": name,
                "weights": "random:0",
                "image_size": size,
                "precision": "bfloat16",
            },
            "store": store,
        }
    )
    with watched(args.device) as busy:
        summary = extract(config, Speed(device=args.device, batch_size=batch))
    assert summary.embedded == slices, summary
    whole = slices / (summary.seconds["embed"] - summary.seconds["load"])
    stages = ("wait", "preprocess", "forward", "stall")
    return {
        "network": name,
        "px": size,
        "batch": batch,
        "slices": slices,
        "bare/s": bare,
        "whole/s": whole,
        "ratio": whole / bare,
        "peak": share_of_peak(bare * flops, args.device),
        "busy %": statistics.mean(busy) if busy else None,
        "binds": max(stages, key=lambda stage: summary.seconds.get(stage, 0.0)),
        "host GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def fastest(network: Backbone, batches: Sequence[int], least_s: float) -> tuple[int, float]:
    """Return the fastest batch size that fits, and slices a second."""
    rates: dict[int, float] = {}
    for batch in batches:
        try:
            rates[batch] = forward_rate(network, batch, least_s)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            torch.cuda.empty_cache()
            break
    best = max(rates, key=lambda batch: rates[batch])
    return best, rates[best]


def flops_a_slice(architecture: Architecture, size: int) -> float:
    """Return the multiplications and additions of one forward pass, of matrices alone."""
    d, tokens = architecture.dim, (size // architecture.patch) ** 2
    patches = 2 * tokens * 3 * architecture.patch**2 * d
    n = tokens + 1 + architecture.registers
    hidden = architecture.mlp_ratio * d
    if architecture.ffn == "swiglu":  # three matrices of two thirds, to a multiple of eight
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    mlp = (6 if architecture.ffn == "swiglu" else 4) * n * d * hidden
    return patches + architecture.depth * (8 * n * d * d + 4 * n * n * d + mlp)


def share_of_peak(flops_per_s: float, device: str) -> float | None:
    """Return the share of the card's peak, where it is known."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else ""
    peak = next((value for card, value in PEAKS.items() if card in name), None)
    return None if peak is None else flops_per_s / (peak * 1e12)


@contextlib.contextmanager
def watched(device: str) -> Iterator[list[float]]:
    """Collect the card's utilisation in per cent while something runs."""
    found: list[float] = []
    if not device.startswith("cuda"):
        yield found
        return
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.25):
            try:
                found.append(torch.cuda.utilization(device))
            except (RuntimeError, ModuleNotFoundError):  # no pynvml
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


# --- kernels ------------------------------------------------------------------------------------


def kernels(args: argparse.Namespace, table: Table, until: float) -> None:
    """Time one network in bfloat16 by each way that torch has of running it."""
    name = args.names[min(2, len(args.names) - 1)]
    batch = args.batches[-1]
    load = functools.partial(
        load_backbone, name, "random:0", image_size=args.sizes[0], device=args.device
    )
    rate = functools.partial(forward_rate, batch_size=batch, least_s=args.least)
    ways: dict[str, Callable[[], float]] = {"as it is": lambda: rate(load(precision="bfloat16"))}
    for way in ATTENTION:
        ways[way.name] = functools.partial(_by_attention, way, load, rate)
    ways["channels last"] = lambda: rate(_channels_last(load(precision="bfloat16")))
    ways["bfloat16 weights"] = lambda: rate(_in_bfloat16(load()))
    if not _is_small(args):
        ways["torch.compile"] = lambda: rate(load(precision="bfloat16", compiled=True))
        ways["CUDA graph"] = lambda: rate(_Graph(load(precision="bfloat16"), batch))
    plain: float | None = None
    for title, measure in ways.items():
        if time.monotonic() > until:
            table.fail(f"no time was left for {title} and what follows")
            return
        try:
            found = measure()
        except Exception as error:  # a way that is not there, or has no room, loses no other
            table.fail(f"{title}: {(str(error).splitlines() or [''])[0]}")
            continue
        plain = plain or found
        table.add(network=name, way=title, **{"slices/s": found, "ratio": found / plain})


ATTENTION = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)


def _by_attention(
    way: SDPBackend, load: Callable[..., Backbone], rate: Callable[[Backbone], float]
) -> float:
    with sdpa_kernel(way):
        return rate(load(precision="bfloat16"))


def _channels_last(network: Backbone) -> Backbone:
    network.network.to(memory_format=torch.channels_last)
    return network


def _in_bfloat16(network: Backbone) -> Backbone:
    """Have the weights themselves in bfloat16, where autocast makes copies of them a pass."""
    network.network.bfloat16()
    return network


class _Graph(Backbone):
    """A network whose pass was recorded once, and is played again."""

    def __init__(self, network: Backbone, batch: int) -> None:
        super().__init__(network.network, network.architecture, network.image_size, network.blocks)
        size = network.image_size
        self._x = torch.zeros((batch, 3, size, size), device=network.device)
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):  # as torch wants it: no pass is recorded as its first
            for _ in range(3):
                network(self._x)
        torch.cuda.current_stream().wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._features = network(self._x)

    def __call__(self, x: torch.Tensor) -> BatchFeatures:
        self._x.copy_(x)
        self._graph.replay()
        return self._features


# --- preprocessing ------------------------------------------------------------------------------


def preprocess(args: argparse.Namespace, table: Table, until: float) -> None:
    """Compare preprocessing on the card with that on a core, rule by rule."""
    device = torch.device(args.device)
    count, times = (4, 2) if _is_small(args) else (64, 8)
    rng = np.random.default_rng(0)
    smooth = rng.normal(0, 300, (count, 64, 64)).repeat(times, 1).repeat(times, 2)
    pixels = (smooth + rng.normal(0, 40, smooth.shape)).astype(np.int16)
    items = [Slice(0, one) for one in pixels]
    name = args.names[min(1, len(args.names) - 1)]
    network = load_backbone(name, "random:0", image_size=args.sizes[0], device=args.device)
    network_s = 1 / forward_rate(network, min(count, 32), args.least)
    del network
    for rule in (Window(low=-150, high=250), MinMax(), Percentiles(), ZScore()):
        recipe = _recipe(name, args.sizes[0], rule)
        here = functools.partial(prepare_batch, items, ["CT"] * count, recipe)
        there = functools.partial(here, device)
        difference = float((there().cpu() - here()).abs().max())
        on_card = _seconds(there, device) / count
        on_core = _seconds(here, torch.device("cpu")) / count
        table.add(
            rule=rule.kind,
            **{
                "card ms": 1000 * on_card,
                "cores ms": 1000 * on_core,
                "largest": difference,
                "of ViT-B": on_card / network_s,
            },
        )


def percentiles(args: argparse.Namespace, table: Table, until: float) -> None:
    """Time three ways to the percentiles of a batch, against NumPy's and against the network."""
    count, side = (4, 128) if _is_small(args) else (64, 512)
    noise = np.random.default_rng(0).normal(0, 300, (count, side, side)).astype(np.int16)
    expected = np.percentile(noise, PERCENTS, (1, 2))
    name = args.names[min(1, len(args.names) - 1)]
    network = load_backbone(
        name, "random:0", image_size=args.sizes[0], device=args.device, precision="bfloat16"
    )
    network_s = 1 / forward_rate(network, min(count, 32), args.least)
    del network
    stored = torch.from_numpy(noise).to(args.device)
    for way in (_by_sort, _by_quantile, _by_histogram):
        try:
            found = way(stored).cpu().numpy()
            slice_s = _seconds(functools.partial(way, stored), stored.device) / count
        except Exception as error:  # as `torch.quantile`, which takes 2**24 values at the most
            table.fail(f"{way.__name__}: {(str(error).splitlines() or [''])[0]}")
            continue
        largest = float(np.abs(found - expected).max())
        cells = {"ms/slice": 1000 * slice_s, "largest": largest, "of ViT-B": slice_s / network_s}
        table.add(way=way.__name__, **cells)


PERCENTS = (1.0, 99.0)


def _by_sort(stored: torch.Tensor) -> torch.Tensor:
    """Return the percentiles of each slice, (2, b), as `extract` finds them on a card."""
    return torch.stack(sorted_percentiles(stored.float(), PERCENTS))[:, :, 0, 0]


def _by_quantile(stored: torch.Tensor) -> torch.Tensor:
    parts = torch.tensor(PERCENTS, device=stored.device) / 100
    by_slice = [torch.quantile(one.flatten().float(), parts) for one in stored]
    return torch.stack(by_slice, 1)


def _by_histogram(stored: torch.Tensor) -> torch.Tensor:
    """Count whole numbers, which most slices are of: exact for them."""
    count, pixels = len(stored), stored[0].numel()
    values = 2**16
    places = stored.flatten(1).int() + 2**15
    places += values * torch.arange(count, device=stored.device, dtype=torch.int32)[:, None]
    upto = torch.bincount(places.flatten(), minlength=values * count).view(count, values).cumsum(1)
    found = []
    for percent in PERCENTS:
        place = percent / 100 * (pixels - 1)
        ranks = torch.tensor([int(place), int(np.ceil(place))], device=stored.device)
        ends = torch.searchsorted(upto, ranks.expand(count, 2).contiguous(), right=True) - 2**15
        below, above = ends.double().unbind(1)
        found.append(below + (above - below) * (place % 1))
    return torch.stack(found)


def _recipe(name: str, size: int, rule: Any) -> Recipe:
    config = Config.model_validate(
        {
            "data": {"root": "."},
            "backbone": {"name": name, "weights": "random:0", "image_size": size},
            "preprocess": {"ct": rule.model_dump()},
            "store": "unused",
        }
    )
    from pipeline.extraction.recipes import make_recipe

    return make_recipe(config)[0]


def _seconds(work: Callable[[], object], device: torch.device, rounds: int = 5) -> float:
    """Return the median time of some work, done when the device has done it."""
    took = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took.append(time.perf_counter() - began)
    return statistics.median(took[1:])


# --- precision ----------------------------------------------------------------------------------


def precision(args: argparse.Namespace, table: Table, until: float) -> None:
    """Compare bfloat16 with float32 on the device, by what it does to features and neighbours."""
    from pipeline.evaluation.neighbours import neighbours

    name = args.names[min(1, len(args.names) - 1)]
    size = args.sizes[0]
    count = 16 if _is_small(args) else 256
    seen = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x = torch.nn.functional.interpolate(seen, (size, size), mode="bilinear").to(args.device)
    features = {}
    for kind in ("float32", "bfloat16"):
        network = load_backbone(
            name, "random:0", image_size=size, device=args.device, precision=kind
        )
        with torch.inference_mode():
            outputs = [network(some) for some in x.split(16)]
        cls = torch.cat([one.cls[:, -1].float().cpu() for one in outputs])
        tokens = torch.cat([one.patch.float().cpu().flatten(0, -2) for one in outputs])
        features[kind] = cls.numpy(), tokens.numpy()
        del network, outputs
    rows = np.arange(count)
    nearest = [neighbours(features[kind][0], rows, rows, 5, patient=rows)[1] for kind in features]
    kept = np.mean([np.isin(a, b).mean() for a, b in zip(*nearest, strict=True)])
    for place, of in enumerate(("CLS", "patch tokens")):
        a, b = (torch.from_numpy(features[kind][place]) for kind in ("float32", "bfloat16"))
        cosine = torch.nn.functional.cosine_similarity(a, b)
        table.add(
            network=name,
            of=of,
            **{
                "least cosine": float(cosine.min()),
                "mean cosine": float(cosine.mean()),
                "kept of 5": float(kept) if of == "CLS" else None,
            },
        )


# --- neighbours ---------------------------------------------------------------------------------


def knn(args: argparse.Namespace, table: Table, until: float) -> None:
    """Time exact search for 10 neighbours: FAISS on the card, torch, FAISS on the cores."""
    from pipeline.evaluation.cards import number_of_cards, why_none
    from pipeline.evaluation.neighbours import exact

    n, d, q, k = (20_000, 64, 200, 10) if _is_small(args) else (1_000_000, 1024, 10_000, 10)
    x = np.random.default_rng(0).standard_normal((n + q, d), np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    reference = np.arange(n)
    few = np.arange(n, n + min(q, 500))
    began = time.perf_counter()
    cosine, _ = exact(x, reference, few, k)
    cores_s = (time.perf_counter() - began) / len(few)
    table.add(by="FAISS, cores", **{"ms/query": 1000 * cores_s, "largest": 0.0, "ratio": 1.0})
    by_torch = functools.partial(_torch_nearest, x[:n], x[n:], k, torch.device(args.device))
    seconds, found = _timed(by_torch)
    _tell_search(table, "torch", seconds / q, found[: len(few)], cosine, cores_s)
    if not number_of_cards():
        table.fail(f"FAISS has no GPU: {why_none()}")
        return
    every = np.arange(n, n + q)
    exact(x, reference[:1000], every[:10], k, args.device)  # opens its working memory
    seconds, (found, _) = _timed(lambda: exact(x, reference, every, k, args.device))
    _tell_search(table, "FAISS, card", seconds / q, found[: len(few)], cosine, cores_s)


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def _torch_nearest(
    references: np.ndarray, queries: np.ndarray, k: int, device: torch.device
) -> np.ndarray:
    held = torch.from_numpy(references).to(device)
    found = []
    for some in torch.from_numpy(queries).split(1024):
        found.append((some.to(device) @ held.T).topk(k).values.cpu())
    return torch.cat(found).numpy()


def _tell_search(
    table: Table,
    by: str,
    query_s: float,
    found: np.ndarray,
    cosine: np.ndarray,
    cores_s: float,
) -> None:
    largest = float(np.abs(found - cosine).max())
    cells = {"ms/query": 1000 * query_s, "largest": largest, "ratio": cores_s / query_s}
    table.add(by=by, **cells)


# --- the probe ----------------------------------------------------------------------------------


def probe(args: argparse.Namespace, table: Table, until: float) -> None:
    """Time the logistic regression behind the probe, on the device and on the cores."""
    from sklearn import config_context
    from sklearn.linear_model import LogisticRegression

    n, d = (400, 32) if _is_small(args) else (20_000, 1024)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d)).astype(np.float32)
    y = (x[:, :8].sum(1) + rng.standard_normal(n) > 0).astype(np.int64)
    chances = {}
    for device in dict.fromkeys(("cpu", args.device)):
        on = torch.from_numpy(x).to(device), torch.from_numpy(y).to(device)
        model = LogisticRegression(C=0.1, max_iter=300)
        with config_context(array_api_dispatch=True):
            seconds, fitted = _timed(lambda at=on, of=model: of.fit(*at))
            chances[device] = fitted.predict_proba(on[0])[:, 1].cpu().numpy()
        largest = float(np.abs(chances[device] - chances["cpu"]).max())
        table.add(device=device, seconds=seconds, largest=largest)


# --- memory -------------------------------------------------------------------------------------


def memory(args: argparse.Namespace, table: Table, until: float) -> None:
    """Embed a batch that the card has no room for: in halves, with the same features."""
    name = args.names[0]
    network = load_backbone(name, "random:0", image_size=args.sizes[0], device=args.device)
    count = 8 if _is_small(args) else 256
    recipe = _recipe(name, args.sizes[0], MinMax())
    pixels = np.random.default_rng(0).integers(0, 255, (count, 256, 256)).astype(np.uint8)
    items = [Slice(0, one) for one in pixels]
    free = _embedded(network, recipe, items, 32)
    taken = _all_but(args.device, 2**30)
    at_once, scarce = _embedded(network, recipe, items, count)
    del taken
    largest = float(np.abs(free[1] - scarce).max())
    table.add(network=name, batch=count, **{"at once": at_once, "largest": largest})


def _embedded(
    network: Backbone, recipe: Recipe, items: list[Slice], batch: int
) -> tuple[int, np.ndarray]:
    """Return how many slices were embedded at once in the end, and their CLS tokens."""
    found: list[np.ndarray] = []
    with contextlib.closing(Forward(network, recipe, batch)) as forward:
        for start in range(0, len(items), batch):
            some = items[start : start + batch]
            seconds = dict.fromkeys(("preprocess", "forward"), 0.0)
            forward.run(
                some, ["CT"] * len(some), lambda values: found.append(values["cls"]), seconds
            )
        forward.flush()
        return forward.most, np.concatenate(found).astype(np.float32)


def _all_but(device: str, left: int) -> torch.Tensor | None:
    """Take the memory of a card but for so many bytes; nothing of the processor's."""
    if not device.startswith("cuda"):
        return None
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return torch.empty(max(0, free - left), dtype=torch.uint8, device=device)


PARTS: dict[str, Callable[[argparse.Namespace, Table, float], None]] = {
    "pace": pace,
    "kernels": kernels,
    "preprocess": preprocess,
    "percentiles": percentiles,
    "precision": precision,
    "knn": knn,
    "probe": probe,
    "memory": memory,
}


if __name__ == "__main__":
    main()
