"""The folder of weights: files of official shape in, checked, found again by name."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.backbones.registry import add, check, fetch, known
from pipeline.backbones.weights import BACKBONES, locate
from stores.errors import WeightsError
from tests.pipeline.models import official_shapes

NAME = "dinov2_vits14"


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a file of the official shape of ViT-S/14, of small numbers."""
    file = tmp_path_factory.mktemp("official") / "download.pth"
    shapes = official_shapes(384, 12)
    torch.save(
        {name: torch.full(shape, 0.01, dtype=torch.float16) for name, shape in shapes.items()}, file
    )
    return file


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RADPROBE_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "weights"


def test_what_is_known_fits_the_official_files() -> None:
    every = {each.name: each for each in known()}
    assert list(every)[: len(BACKBONES)] == list(BACKBONES)
    for name, arguments in {
        NAME: (384, 12),
        "dinov2_vitl14": (1024, 24),
        "dinov2_vitg14": (1536, 40),
    }.items():
        swiglu = name == "dinov2_vitg14"
        shapes = official_shapes(*arguments, swiglu=swiglu)
        numbers = sum(int(torch.Size(shape).numel()) for shape in shapes.values())
        assert every[name].parameters == numbers
    assert {each.sha256 for each in every.values()} == {"not published"}


def test_a_file_comes_in_is_found_and_checked(official: Path, folder: Path) -> None:
    done = add(official)
    assert (done.name, Path(done.file)) == (NAME, folder / "dinov2_vits14_pretrain.pth")
    assert locate(NAME, None, hub=False).identity == f"sha256:{done.sha256}"
    assert add(official) == done  # again changes nothing
    assert [(c.name, c.fault) for c in check([])] == [(NAME, "")]
    assert sorted(path.name for path in folder.iterdir()) == [
        "dinov2_vits14_pretrain.pth",
        "dinov2_vits14_pretrain.pth.sha256",
    ]


def test_a_file_that_changed_since_is_found_out(official: Path, folder: Path) -> None:
    file = Path(add(official).file)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    (found,) = check([NAME])
    assert "was" in found.fault
    with pytest.raises(WeightsError, match="another content"):
        add(official)


def test_what_fits_no_network_stays_outside(tmp_path: Path, folder: Path) -> None:
    small = official_shapes(48, 5)
    torch.save({k: torch.zeros(s) for k, s in small.items()}, tmp_path / "small.pth")
    with pytest.raises(WeightsError, match="dim 48, depth 5 and 0 registers"):
        add(tmp_path / "small.pth")
    lacking = official_shapes(384, 12)
    del lacking["blocks.3.mlp.fc1.weight"]
    save_file({k: torch.zeros(s) for k, s in lacking.items()}, tmp_path / "lacking.safetensors")
    with pytest.raises(WeightsError, match="missing"):
        add(tmp_path / "lacking.safetensors")
    with pytest.raises(WeightsError, match="no weights file"):
        add(tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="not here"):
        list(check([NAME]))
    assert not folder.exists()


@pytest.fixture
def mirror(official: Path) -> Iterator[str]:
    serve = functools.partial(_Silent, directory=str(official.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def test_fetching_from_a_mirror(mirror: str, folder: Path) -> None:
    assert fetch(NAME, f"{mirror}/download.pth").name == NAME
    assert [c.fault for c in check([NAME])] == [""]
    with pytest.raises(WeightsError, match="holds dinov2_vits14, not dinov2_vitb14"):
        fetch("dinov2_vitb14", f"{mirror}/download.pth")
    with pytest.raises(WeightsError, match="cannot be fetched: HTTP Error 404"):
        fetch(NAME, f"{mirror}/none.pth")
    with pytest.raises(WeightsError, match="no backbone"):
        fetch("dinov2_vitx14")
