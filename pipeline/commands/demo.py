"""Write the synthetic collection."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.common import out

app = typer.Typer()


@app.command("demo-data", epilog="Example: radprobe demo-data /tmp/collection --patients 20")
def demo_data(
    root: Annotated[Path, typer.Argument(help="The folder to write; empty or not there yet.")],
    patients: Annotated[int, typer.Option(min=10, help="How many patients.")] = 60,
    seed: Annotated[int, typer.Option(help="Equal seeds write equal files.")] = 0,
) -> None:
    """Write a synthetic collection of real DICOM, NIfTI and PNG files, with labels and masks."""
    from pipeline.datasets.demo import write_demo

    write_demo(root, patients, seed)
    out.print(f"A synthetic collection of {patients} patients is in {root}.")
