"""Write a synthetic radiology collection as real files: chest X-rays, chest CT, brain MR.

- DICOM, PNG and NIfTI, `labels.csv` with a row an image or series, and masks in `masks/`.
- The same version, number of patients and seed give the same bytes.
- A finding shows in the pixels alone: names, order, sizes, formats, headers and mean grey levels
  are drawn without a look at it.
- The collection is written beside `root` and renamed to it, so that there is never half of one.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from uuid import uuid4

from pipeline.datasets.phantoms import MAX_PATIENTS
from stores.errors import ConfigError, OccupiedError

VERSION = 2
NOTE = "Synthetic images drawn by radprobe: no patient, image or finding in this folder is real."


def write_demo(root: Path, patients: int = 60, seed: int = 0) -> Path:
    """Write the collection of `patients` patients under `root`, at once or not at all.

    About two chest X-rays a patient, a CT and an MR for every other patient. A root that holds
    the same collection is left alone.

    Raises:
        ConfigError: for a number of patients outside 1 to 9,999 or a negative seed.
        OccupiedError: where root holds anything but this collection.

    """
    _check_arguments(patients, seed)
    identity = {"version": VERSION, "patients": patients, "seed": seed}
    if _has_collection(root, identity):
        return root
    _check_free(root, identity)
    # Imported where it is drawn, since drawing takes scipy, pydicom and nibabel: a collection that
    # is there costs a second run nothing.
    from pipeline.datasets.phantoms.collection import write_collection

    place = root.resolve()  # a name to put a sibling beside, even for "." or a link
    partial = place.parent / f".{place.name}.{uuid4().hex}.partial"
    try:
        write_collection(partial, patients, seed)
        _write_card(partial / "demo.json", identity)
        _publish(partial, place, identity)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


# --- root --------------------------------------------------------------------------------------


def _check_arguments(patients: int, seed: int) -> None:
    """Refuse what no collection can be drawn from."""
    if not 1 <= patients <= MAX_PATIENTS:
        raise ConfigError(f"patients must be from 1 to {MAX_PATIENTS}. Got {patients!r} instead.")
    if seed < 0:
        raise ConfigError(f"seed must be 0 or more. Got {seed!r} instead.")


def _has_collection(root: Path, identity: dict[str, int]) -> bool:
    """Whether root has all of a collection with this version, patients and seed.

    The card is written last, and the folder renamed after it: where it lies, the rest does.
    """
    return identity.items() <= _read_card(root).items()


def _read_card(root: Path) -> dict[str, object]:
    """What `demo.json` in root says; empty without one that can be read."""
    try:
        card = json.loads((root / "demo.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}


def _write_card(path: Path, identity: dict[str, int]) -> None:
    """Write what the collection is, so that it is known again."""
    text = json.dumps({**identity, "note": NOTE}, indent=2)
    path.write_text(text + "\n", encoding="utf-8")


def _check_free(root: Path, identity: dict[str, int]) -> None:
    """Refuse a root that is a file or a folder with something else in it."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return
    kind = "a folder without a readable demo.json" if root.is_dir() else "a file"
    content = _read_card(root) or kind
    raise OccupiedError(
        f"root {str(root)!r} must be free, empty or hold the demo {identity!r}. "
        f"Got {content!r} instead. Name another root, or remove this one."
    )


def _publish(partial: Path, root: Path, identity: dict[str, int]) -> None:
    """Rename the finished folder to root; another writer of the same collection may be first."""
    try:
        if root.exists():
            root.rmdir()  # refuses a folder that has been filled in the meantime
        partial.rename(root)
    except OSError:
        if not _has_collection(root, identity):
            raise
