"""Every network by name, with what its tests said.

    python -m benchmarks.backbones

Runs tests/pipeline/backbones/test_models.py (tiny random networks of the same classes) and prints a
line a network: its family's features against its library's own forward pass, positions resampled as
there, a file with a tensor too few or too many refused, the name's own test (shapes, determinism,
batches), the number of parameters as published.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from pipeline.backbones.models import COMPARATORS

TESTS = "tests/pipeline/backbones/test_models.py"
OWN, OF_TIMM = (
    "test_features_equal_the_librarys_own_pass",
    "test_a_grid_of_timms_equals_its_own_pass",
)
# column -> the test's name, and whether it is of the family or of the name
COLUMNS = {
    "own pass": (OWN, True),
    "positions": ("test_positions_are_resampled_as_the_library_does", True),
    "strict": ("test_a_key_too_few_or_too_many_is_named", True),
    "by name": ("test_every_name_gives_a_network", False),
    "size": ("test_the_table_has_the_published_sizes", False),
}


def outcomes() -> dict[str, str]:
    """Return what each test said, by its name with parameters."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", TESTS, f"--junitxml={report}"]
        subprocess.run(command, check=False, capture_output=True)
        cases = ElementTree.parse(report).iter("testcase")
        return {case.attrib["name"]: _outcome(case) for case in cases}


def _outcome(case: ElementTree.Element) -> str:
    words = {"failure": "FAILED", "error": "ERROR", "skipped": "skipped"}
    return next((said for tag, said in words.items() if case.find(tag) is not None), "passed")


def main() -> None:
    """Print the table; exit 1 where a test failed."""
    found = outcomes()
    head = f"{'name':<17}{'family':<12}{'d':>5}{'patch':>6}  "
    print(head + "".join(f"{column:<11}" for column in COLUMNS) + "not checked")
    for name, entry in COMPARATORS.items():
        shape, cells = entry.architecture, ""
        for test, of_family in COLUMNS.values():
            key = shape.family if of_family else name
            asked = f"{test}[{key}]"
            if of_family and shape.family == "timm_wrapper":
                asked = f"{OF_TIMM}[{shape.settings['architecture']}]" if test == OWN else ""
            cells += f"{found.get(asked, '-'):<11}"
        print(
            f"{name:<17}{shape.family:<12}{shape.dim:>5}{shape.patch:>6}  {cells}{entry.unchecked}"
        )
    bad = sorted(name for name, said in found.items() if re.match("FAILED|ERROR", said))
    print(
        f"{len(found)} tests, {len(bad)} failed. -: no such test (rad_dino is a DINOv2: its forward"
    )
    print(
        "pass is held against the official outputs in "
        "tests/pipeline/backbones/test_backbones.py). Skipped:"
    )
    print("timm is not installed. The names in BiomedCLIP's file have a test of their own.")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
