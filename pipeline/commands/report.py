"""Show people what is in a store: the report page."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.common import JsonOpt, MinuteLines, err, out

if TYPE_CHECKING:
    from pipeline.report.page import Progress

app = typer.Typer()


@app.command(epilog="Example: radprobe report configs/demo.yaml --out demo.html --figures figures")
def report(
    stores: Annotated[
        list[Path],
        typer.Argument(
            metavar="STORE...",
            help="Folders of stores, or their config files: these bring pictures and labels.",
        ),
    ],
    to: Annotated[
        Path | None,
        typer.Option("--out", help="The page to write [default: STORE-report.html]."),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(help="A folder for every figure as SVG and PNG, tables as Markdown, LaTeX."),
    ] = None,
    model: Annotated[
        list[Path] | None,
        typer.Option(
            help="A model's folder: a section on what it is for and on its worst cases; again for "
            "another."
        ),
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Write one page on a store and its answers, or on several side by side; it loads nothing."""
    from pipeline.report.page import write_report

    with _progress() as progress:
        if model:
            from pipeline.fitted.section import sections_of

            tell = functools.partial(sections_of, model)
            written = write_report(stores, to, figures, progress, tell)
        else:
            written = write_report(stores, to, figures, progress)
    if as_json:
        print(
            json.dumps(
                {
                    "page": str(written.page),
                    "bytes": written.bytes,
                    "pictures": written.pictures,
                    "figures": [str(path) for path in written.figures],
                },
                indent=1,
            )
        )
        return
    size = f"{written.bytes / 1e6:.1f} MB, {written.pictures} pictures"
    out.print(f"The report is {written.page} ({size}).", highlight=False, soft_wrap=True)
    if written.pictures:
        out.print("Names may be burned into pictures: look before you pass the page on.")
    if figures:
        out.print(f"{len(written.figures)} files are in {figures}.", highlight=False)


@contextmanager
def _progress() -> Iterator[Progress]:
    """Say what is being done; where stderr is no terminal, for how long, a line a minute."""
    if not err.is_terminal:
        with MinuteLines(what="report").watched():
            yield lambda _: None
        return
    with err.status("report") as status:
        yield status.update
