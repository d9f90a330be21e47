"""A benchmark killed and resumed: made-up folders of official layouts by tiny networks.

    python -m benchmarks.resumed [FOLDER] [--kills 2] [--paper]
    python -m benchmarks.resumed [FOLDER] --plan

Writes Montgomery, figshare's brain tumours and MSD's spleen as their archives unpack, three tiny
untrained networks, and runs kNN, probe, few-shot, fine-tuning, segmentation and LoRA on all. It
is killed by SIGKILL after so many answers, twice, and resumed. Every answer and every committed
part must then be the file that was written first; run once more, nothing is computed or embedded.

--paper: NIH and Montgomery by one tiny network, in every setting of configs/paper.yaml, each with
its own options but for what makes it long: sizes, epochs, rates and shots. --plan: nothing is run;
`radprobe benchmark configs/paper.yaml --plan` on folders of all ten sets, and how many cells each
setting has of each.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.benchmark.settings import cells_of, load_benchmark
from pipeline.config.heads import TUNED
from pipeline.datasets.describing import describe
from tests.pipeline import layouts
from tests.pipeline.models import write_tiny_folder
from tests.pipeline.processes import COMMAND
from tests.warm import WarmProcess

SIZE = 56
SETS: dict[str, Callable[[Path], None]] = {
    "montgomery": layouts.montgomery,
    "brain-tumour": layouts.brain_tumour,
    "msd-spleen": lambda root: layouts.decathlon(root, "spleen", 1, 10),
}
SETTINGS: dict[str, Any] = {
    "kNN": {"method": "knn", "options": {"k": [1, 5], "features": "cls+mean"}},
    "probe": {"method": "probe", "options": {"steps": 5}},
    "few-shot": {"method": "fewshot", "options": {"shots": [1, 2], "queries": 2, "episodes": 20}},
    "fine-tuning": {
        "method": "finetune",
        "options": {"epochs": 2, "augment": "none", "slices": 2, "batch": 8},
    },
    "segmentation": {"method": "segment", "options": {"method": "knn", "k": [1, 5]}},
    "LoRA, masks": {
        "method": "lora",
        "of": "masks",
        "options": {"epochs": 1, "augment": "none", "batch": 8, "rank": 4},
    },
}

PAPER = Path(__file__).parents[1] / "configs/paper.yaml"
OF_PAPER: dict[str, Callable[[Path], None]] = {
    "nih": layouts.nih,
    "chexpert": layouts.chexpert,
    "sars": layouts.sars,
    "brain-tumour": layouts.brain_tumour,
    "montgomery": layouts.montgomery,
    "shenzhen": layouts.shenzhen,
    "amos": layouts.amos,
    "msd-heart": lambda root: layouts.decathlon(root, "la", 1),
    "msd-hippocampus": lambda root: layouts.decathlon(root, "hippocampus", 2),
    "msd-spleen": lambda root: layouts.decathlon(root, "spleen", 1),
}
_TUNED_SOON = {"epochs": 1, "augment": "none", "batch": 8}
# What of a setting's options is made small, by its method; of `segment` by that of its head.
SOON: dict[str, dict[str, Any]] = {
    "knn": {"k": [1, 5]},
    "probe": {"steps": 5},
    "linear": {"epochs": 2},
    "fewshot": {},
    **dict.fromkeys(TUNED, _TUNED_SOON),
    "segment": {"epochs": 1, "learning_rates": [1e-2], "batch_size": 8},
    "unet": {"size": "small"},
    "transunet": {"size": "small"},
}


def papers_settings(sets: Iterable[str]) -> dict[str, Any]:
    """Return the settings of the paper's file, each made small, for some of its sets."""
    settings = yaml.safe_load(PAPER.read_text())["settings"]
    for setting in settings.values():
        options = setting.setdefault("options", {})
        options |= SOON[setting["method"]]
        options |= SOON.get(options.get("method", ""), {})
        if "shots" in options and setting["method"] == "segment":
            options |= {"shots": [1], "draws": 1}
        setting.pop("image_size", None)
        if options.get("size") == "small":
            setting["image_size"] = 2 * SIZE  # else nothing is left at its narrowest
        if "datasets" in setting:
            setting["datasets"] = [name for name in setting["datasets"] if name in sets]
    return dict(settings)


def papers_file(root: Path) -> Path:
    """Write the paper's file as it is, over made-up folders of all its sets; return it."""
    asked = yaml.safe_load(PAPER.read_text())
    for name, write in OF_PAPER.items():
        write(root / "downloads" / name)
        describe(name, root / "downloads" / name, root / "datasets" / name)
    assert asked["datasets"].keys() == OF_PAPER.keys()
    file = root / "configs/paper.yaml"
    file.parent.mkdir()
    file.write_text(PAPER.read_text())
    return file


def show_plan(root: Path) -> None:
    """Print the plan of the paper's file, and how many cells each setting has of each set."""
    file = papers_file(root)
    # Weights that are not here are not looked for on a network.
    planned = finish(file, "--plan", HF_HUB_OFFLINE="1")
    cells = cells_of(load_benchmark(file))
    print(f"{len(planned)} stores, {sum(each['cells'] for each in planned)} cells in the plan")
    counts = Counter((cell.setting, cell.dataset) for cell in cells)
    print(f"{'':>28}" + "".join(f"{name[:9]:>10}" for name in OF_PAPER))
    for setting in dict.fromkeys(cell.setting for cell in cells):
        row = (counts[setting, name] or "" for name in OF_PAPER)
        print(f"{setting:>28}" + "".join(f"{number:>10}" for number in row))
    print(f"networks: {', '.join(dict.fromkeys(cell.backbone for cell in cells))}")
    asked = load_benchmark(file)
    absent = {*asked.settings} - {cell.setting for cell in cells}
    print(f"settings without a cell: {', '.join(sorted(absent)) or 'none'} (wanted none)")


def prepare(
    root: Path,
    sets: Mapping[str, Callable[[Path], None]] = SETS,
    seeds: tuple[int, ...] = (0,),
    *,
    paper: bool = False,
) -> Path:
    """Write data sets, networks and the benchmark file; return that.

    paper: with the paper's settings, and one network.
    """
    for name, write in sets.items():
        write(root / "downloads" / name)
        describe(name, root / "downloads" / name, root / "sets" / name)
    networks = {
        "tiny": write_tiny_folder(root / "networks/tiny", 1),
        "registers": write_tiny_folder(root / "networks/registers", 2, registers=4),
        "shallow": write_tiny_folder(root / "networks/shallow", 3, depth=4),
    }
    asked: dict[str, Any] = {
        "out": "out",
        "datasets": {name: f"sets/{name}/config.yaml" for name in sets},
        "backbones": {
            name: {"name": f"hf:{folder}", "image_size": SIZE} for name, folder in networks.items()
        },
        "settings": papers_settings(sets) if paper else SETTINGS,
        "seeds": list(seeds),
    }
    if paper:
        asked["backbones"] = {"tiny": asked["backbones"]["tiny"]}
        asked["tokens"] = {"blocks": 5, "coding": "int8"}
    (root / "benchmark.yaml").write_text(yaml.safe_dump(asked, sort_keys=False))
    return root / "benchmark.yaml"


def start(file: Path, *options: str, **environment: str) -> WarmProcess:
    """Start `radprobe benchmark` in a process group of its own."""
    code = f"import os; os.setsid(); {COMMAND}"
    command = ["benchmark", str(file), "--json", "--device", "cpu", "--workers", "0"]
    return WarmProcess(code, *command, *options, environment={**os.environ, **environment})


def finish(file: Path, *options: str, **environment: str) -> Any:
    """Run it to its end; return what it said."""
    process = start(file, *options, **environment)
    said, complained = process.communicate()
    assert process.returncode == 0, complained[-4000:]
    return json.loads(said)


def done(out: Path) -> dict[str, tuple[int, int]]:
    """Return answers and receipts on file: path -> inode, time; a file written again is another."""
    patterns = ("stores/*/*/results/*-*.json", "stores/*/*/segmentations/*.json")
    patterns += ("stores/*/*/parts/*.json",)
    return {
        str(path.relative_to(out)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for pattern in patterns
        for path in out.glob(pattern)
        if not path.name.startswith(".")  # temporary
    }


def answers_of(paths: Mapping[str, Any]) -> list[str]:
    """Return the paths of answers among these."""
    return [path for path in paths if "/parts/" not in path]


def kill_after(file: Path, out: Path, answers: int) -> dict[str, tuple[int, int]]:
    """Start it, kill its group once so many answers are on file; return what is there then."""
    process = start(file)
    while process.poll() is None and len(answers_of(done(out))) < answers:
        time.sleep(0.01)
    assert process.poll() is None, "it ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return done(out)


def scores(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the scores of every answer on file, by its name."""
    return {path: json.loads((out / path).read_text())["scores"] for path in answers_of(done(out))}


def main() -> None:
    """Print what was killed, what was kept, and what was computed twice."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--paper", action="store_true")
    parser.add_argument("--plan", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = asked.folder or Path(temporary)
        if asked.plan:
            show_plan(root)
            return
        sets = {name: OF_PAPER[name] for name in ("nih", "montgomery")} if asked.paper else SETS
        file, out, kept = prepare(root, sets, paper=asked.paper), root / "out", []
        for number in range(1, asked.kills + 1):
            kept.append(kill_after(file, out, 9 * number - 2))
            print(f"kill {number}: {len(answers_of(kept[-1]))} answers and "
                  f"{len(kept[-1]) - len(answers_of(kept[-1]))} parts on file")  # fmt: skip
        before = len(answers_of(kept[-1])) if kept else 0
        last = finish(file)
        computed = sum(cell["computed"] for cell in last["cells"])
        now = done(out)
        again = [path for each in kept for path, stamp in each.items() if now.get(path) != stamp]
        print(f"resumed: {computed} answers computed, {len(answers_of(now))} on file now")
        print(f"before + computed = {before + computed} (wanted {len(answers_of(now))})")
        print(f"written twice: {len(again)} (wanted 0) {again}")
        third = finish(file)
        more, embedded = (sum(c[key] for c in third["cells"]) for key in ("computed", "embedded"))
        print(f"once more: {more} computed, {embedded} embedded (wanted 0, 0)")
        print(f"page: {last['page']}" if asked.folder else "page: name a FOLDER to keep it")


if __name__ == "__main__":
    main()
