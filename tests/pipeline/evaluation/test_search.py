from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.search import search
from stores.errors import ConfigError
from tests.pipeline.collection import config_of, make_store, write_csv

RNG = np.random.default_rng(0)
N = 60


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, np.ndarray]:
    """Return a config over 10 patients of 2 series of 3 slices; the last slice is unreadable."""
    root = tmp_path_factory.mktemp("search")
    cls = RNG.standard_normal((N, 4, 8)).astype(np.float16)
    series = np.arange(N) // 3
    slices = [
        {"patient": f"P{s // 2}", "series": f"S{s}", "path": f"p{s // 2}/s{s}/f{i}.dcm"}
        for i, s in enumerate(series)
    ]
    status = np.ones(N, np.uint8)
    status[-1] = 2
    make_store(root / "store", cls, slices, status)
    return config_of(root), cls[:, -1].astype(np.float64)


def test_the_nearest_series_are_those_of_a_plain_sort(asked: Any) -> None:
    config, cls = asked
    means = np.stack([cls[i : i + 3].mean(axis=0) for i in range(0, N - 3, 3)])
    unit = means / np.linalg.norm(means, axis=1, keepdims=True)
    cosine = unit @ unit[4]  # series 4 is of patient 2, as is series 5
    cosine[[4, 5]] = -2
    hits = search(config, "p2/s4", k=4)
    order = np.argsort(-cosine)[:4]
    assert [hit.path for hit in hits] == [f"p{s // 2}/s{s}/f{3 * s}.dcm" for s in order]
    assert [hit.cosine for hit in hits] == pytest.approx(cosine[order].tolist(), abs=1e-3)
    assert {hit.slices for hit in hits} == {3}


def test_a_row_a_path_and_a_pseudonym_ask_and_the_own_patient_never_answers(asked: Any) -> None:
    config, cls = asked
    own = search(config, "p3", level="image", k=99)
    assert len(own) == N - 6 - 1
    assert not any(hit.path.startswith("p3/") for hit in own)
    row = search(config, "20", level="patient", k=99)
    assert len(row) == 9
    name = next(hit.patient for hit in own if hit.path.startswith("p5/"))
    assert name is not None
    absolute = str(Path(config.data.root) / "p5")
    assert search(config, name) == search(config, "./p5/") == search(config, absolute)
    unit = cls / np.linalg.norm(cls, axis=1, keepdims=True)
    cosine = unit @ unit[20]
    cosine[[18, 19, 20, 21, 22, 23, N - 1]] = -2
    assert search(config, "20", level="image", k=1)[0].row == cosine.argmax()


def test_the_own_patient_of_a_label_table_never_answers(tmp_path: Path) -> None:
    """One of patient p1 is in a row without a label, as splits have it all the same."""
    cls = RNG.standard_normal((9, 4, 8)).astype(np.float16)
    make_store(tmp_path / "store", cls, [{"patient": "H8"} if i == 8 else {} for i in range(9)])
    ids = [f"p{i // 3}" for i in range(9)]
    paths = [f"f{i}.png" for i in range(9)]
    write_csv(tmp_path / "labels.csv", path=paths, who=ids, sick=["", *"01010101"])
    config = config_of(tmp_path, labels={"patient": "who"})
    hits = search(config, "f4.png", level="image", k=99)
    assert {hit.row for hit in hits} == {0, 1, 2, 6, 7, 8}
    assert len({hit.patient for hit in hits} - {None}) == 2
    (name,) = {hit.patient for hit in hits if hit.row < 3}
    assert search(config, "p0") == search(config, str(name))
    assert {hit.row for hit in search(config, "p0", level="image", k=99)} == {3, 4, 5, 6, 7, 8}
    # By patient, a hit is all of one.
    assert [hit.slices for hit in search(config, "p0", level="patient")] == [3, 3]
    # A number is a row's before it is a patient's.
    write_csv(tmp_path / "labels.csv", path=paths, who=[i // 3 + 7 for i in range(9)])
    assert {hit.row for hit in search(config, "7", level="image", k=99)} == {0, 1, 2, 3, 4, 5}
    assert {hit.row for hit in search(config, "9", level="image", k=99)} == {0, 1, 2, 3, 4, 5}


def test_what_is_not_there_is_said(asked: Any) -> None:
    for query in ("p99", "77", "59"):  # 59 could not be read
        with pytest.raises(ConfigError, match="Nothing with features .* bears that name"):
            search(asked[0], query)
