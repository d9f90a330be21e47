"""How heavy a report page is, how long it takes to make, and how fast it opens, by slices.

    python benchmarks/report.py --slices 1000 10000 100000

Stores are synthetic, written through FeatureStore (384 numbers a slice, six clusters), with small
pictures as files that the page samples. Opening is by headless Chromium: until the load event, and
until the map stands; a redraw draws all points, a click goes to the next one and draws again.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import yaml

from pipeline.recipe import Architecture, Recipe
from pipeline.shared.pseudonyms import load_key
from stores import ArraySpec, FeatureStore
from stores.slices import FILE_SCHEMA, SLICE_SCHEMA

DIM, PART, PICTURES = 384, 4096, 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, nargs="+", default=[1000, 10_000])
    columns = (
        "slices",
        "make s",
        "peak MiB",
        "page MB",
        "load s",
        "map s",
        "redraw ms",
        "click ms",
    )
    print(*(f"{name:>10}" for name in columns))
    for n in parser.parse_args().slices:
        with tempfile.TemporaryDirectory() as folder:
            config = write_collection(Path(folder), n)
            page = Path(folder) / "page.html"
            started = time.perf_counter()
            code = (
                "import sys, resource; from pathlib import Path\n"
                "from pipeline.report.page import write_report\n"
                "write_report([Path(sys.argv[1])], Path(sys.argv[2]))\n"
                "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
            )
            command = [sys.executable, "-c", code, str(config), str(page)]
            peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            made = time.perf_counter() - started
            size = page.stat().st_size / 1e6
            opened = " ".join(f"{value:>10.3g}" for value in open_page(page))
            print(f"{n:>10} {made:>10.1f} {int(peak):>10} {size:>10.2f} {opened}", flush=True)


def write_collection(root: Path, n: int) -> Path:
    """Write a store of n slices, ten a patient, pictures for some of them, and a config."""
    rng = np.random.default_rng(0)
    architecture = Architecture(dim=DIM, depth=12, heads=6)
    recipe = Recipe(architecture=architecture, weights="random:0", blocks=1, outputs=("cls",))
    specs = {"cls": ArraySpec((1, DIM), "float16")}
    load_key(root / "store")
    store = FeatureStore.create(root / "store", recipe.canonical(), specs, PART)
    count = np.arange(n)
    files = [f"f{i % PICTURES}.png" for i in count]
    columns = {
        "row": count,
        "path": files,
        "frame": np.zeros(n, np.int32),
        "patient": [f"p{i // 10:06}" for i in count],
        "series": [f"s{i // 10:06}" for i in count],
        "position_mm": (count % 10) * 5.0,
        "modality": [("CT", "MR", "DX")[i // 10 % 3] for i in count],
        "height": np.full(n, 64, np.int32),
        "width": np.full(n, 64, np.int32),
        "withdrawn": np.zeros(n, bool),
    }
    table = pa.table(
        {f.name: pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(n, f.type)
         for f in SLICE_SCHEMA}
    )  # fmt: skip
    store.write_tables(table, FILE_SCHEMA.empty_table())
    centres = rng.standard_normal((6, DIM)) * 2
    for part in store.layout.parts(n):
        arrays = store.empty_part()
        rows = np.arange(part.start, min(part.stop, n))
        features = centres[rows // 10 % 6] + rng.standard_normal((len(rows), DIM))
        arrays["cls"][: len(rows), 0] = features
        arrays["status"][: len(rows)] = 1
        arrays["pixel_digest"][: len(rows), :8] = (rows + 1).astype("<i8")[:, None].view(np.uint8)
        claim = store.claim(part)
        assert claim is not None
        store.write(part, claim, arrays, {"failures": []})
        claim.release()
    write_pictures(root / "data", rng, min(n, PICTURES))
    config = {"data": {"root": "data", "paths": "keep"}, "store": "store"}
    (root / "my.yaml").write_text(yaml.safe_dump(config))
    return root / "my.yaml"


def write_pictures(root: Path, rng: np.random.Generator, number: int) -> None:
    from PIL import Image

    root.mkdir()
    for i in range(number):
        small = rng.integers(0, 255, (8, 8), np.uint8)
        Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC).save(root / f"f{i}.png")


def open_page(page: Path) -> tuple[float, float, float, float]:
    """Return seconds until loaded and until the map stands, ms of a redraw and of a click."""
    from playwright.sync_api import sync_playwright

    browser_path = shutil.which("chromium")
    assert browser_path, "Chromium is not here: apt-get install chromium"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        started = time.perf_counter()
        tab.goto(page.as_uri())
        loaded = time.perf_counter() - started
        tab.wait_for_function("document.querySelectorAll('.legend button').length > 0")
        drawn = time.perf_counter() - started
        redraw = tab.evaluate(_TIMED % "document.querySelector('[data-zoom=all]').click()")
        tab.locator("canvas").focus()
        click = tab.evaluate(
            _TIMED % "document.querySelector('canvas').dispatchEvent("
            "new KeyboardEvent('keydown', {key: 'ArrowRight'}))"
        )
        browser.close()
    return loaded, drawn, redraw, click


_TIMED = """() => { const t = []; for (let i = 0; i < 9; i++) { const s = performance.now(); %s;
t.push(performance.now() - s); } return t.sort((a, b) => a - b)[4]; }"""


if __name__ == "__main__":
    main()
