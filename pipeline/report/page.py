"""The page: one HTML file that loads nothing, made of a template and what was gathered."""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.report import short_table, tables
from pipeline.report.atlas import Atlas, Column, Places, Scale, check_shared, draw_map
from pipeline.report.cases import task_cases
from pipeline.report.comparison import Comparison, compare_sources
from pipeline.report.figures import Drawn, overview, task_figures
from pipeline.report.findings import ReportFinding, findings
from pipeline.report.judged import leading_answers
from pipeline.report.models import CaseGroup, ModelSection
from pipeline.report.patches import with_patches
from pipeline.report.pictures import pictures
from pipeline.report.segmented import segmentation_figures
from pipeline.report.sources import Inventory, Source, open_sources, take_stock
from pipeline.report.style import inline_svg, save
from pipeline.report.wording import (
    GLOSSARY,
    METRICS,
    answer_sentence,
    count,
    ends_text,
    interval,
    method_title,
    metric_title,
    notes_once,
    positive_text,
)
from pipeline.results import Result, Segmented
from pipeline.shared.texts import printable
from stores._disk import temporary_name, writing
from stores.leaving import leaving

# Says what is being done, such as "map of vits14".
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Chapter:
    """All that the page says of one store."""

    source: Source
    stock: Inventory
    findings: list[ReportFinding]
    overview: Drawn | None
    tasks: dict[str, list[Drawn]]
    atlas: Atlas | None
    pictures: dict[int, bytes]
    cases: dict[str, tuple[CaseGroup, ...]]

    @property
    def notes(self) -> list[tuple[str, str]]:
        """What is to be known of answers, each note once, with those that it is of."""
        return notes_once(self.source.answers)

    @property
    def nameless(self) -> int:
        """The number of slices of no known patient."""
        return int((self.source.patients == "").sum())


@dataclass(frozen=True)
class Written:
    """What was written where; pictures: how many slices have one."""

    page: Path
    bytes: int
    figures: tuple[Path, ...]
    pictures: int


def write_report(
    paths: list[Path],
    out: Path | None = None,
    figures: Path | None = None,
    progress: Progress = lambda _: None,
    models: Callable[[Sequence[Source]], Sequence[ModelSection]] = lambda _: (),
) -> Written:
    """Write the page of one or more stores, and with `figures` every figure and table as a file.

    paths: folders of stores, or their config files, which bring pictures and labels. out: by
    default `<store>-report.html` next to the first store; a page that is there is replaced. Raises
    StoreNotFoundError, ConfigError, UnwritableError. models: tells of models on these stores.
    """
    sources = open_sources(paths)
    with leaving(*(source.store for source in sources)) as left:
        check_shared(sources)
        # First: a model that is refused leaves nothing to be done.
        sections = models(sources)
        chapters = [_chapter(source, progress) for source in sources]
        comparison = None
        if len(sources) > 1:
            progress("stores side by side")
            comparison = compare_sources(sources)
        text = render(chapters, comparison, sections)
        first = sources[0].store.path
        out = out or first.with_name(f"{first.name}-report.html")
        _put(out, text.encode())
        left.append(out)
        # The page is the answer: it is there before files for a paper are begun.
        written: list[Path] = []
        for path in _write_figures(figures, chapters, comparison) if figures else ():
            written.append(path)
            left.append(path)
    shown = sum(len(chapter.pictures) for chapter in chapters)
    shown += sum(section.pictures for section in sections)
    return Written(out, len(text.encode()), tuple(written), shown)


def _put(path: Path, data: bytes) -> None:
    """Write a file so that whoever opens it meanwhile has the old one whole, or the new one."""
    temporary = path.with_name(temporary_name(path.name))
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        except BaseException:  # a half of a page shows patients too
            temporary.unlink(missing_ok=True)
            raise


def _chapter(source: Source, progress: Progress) -> Chapter:
    """Gather all that the page says of one store; reads pictures, where a config brings them."""
    progress(f"{source.name}: what is in the store")
    stock = take_stock(source)
    checked = findings(source, stock)
    progress(f"{source.name}: figures")
    glance = _at_a_glance(source)
    tasks = _figures_by_task(source)
    progress(f"{source.name}: map and pictures")
    # The map says which slices may have a picture, so it comes before them.
    atlas = draw_map(source)
    shown = pictures(source, atlas.pictured) if atlas else {}
    progress(f"{source.name}: cases")
    cases = with_patches(source, task_cases(source, atlas, shown))
    return Chapter(source, stock, checked, glance, tasks, atlas, shown, cases)


def _at_a_glance(source: Source) -> Drawn | None:
    figure = overview(source)
    if figure is None:
        return None
    chosen = "answers by the config" if source.config else "newest answers"
    about = f"Each task's {chosen}; the dotted line is chance."
    return Drawn("overview", "At a glance", about, figure)


def _figures_by_task(source: Source) -> dict[str, list[Drawn]]:
    """Return the figures of each task, then those of each name of masks."""
    figures = {}
    for task in dict.fromkeys(task for task, _ in source.results):
        if "/" not in task:  # a shortcut: its finding and its line in the table say all
            figures[task] = list(task_figures(source, task))
    for task in dict.fromkeys(task for task, _ in source.segmented):
        figures[f"{task}, segmented"] = list(segmentation_figures(source, task))
    return figures


# --- the page ------------------------------------------------------------------------------------


def render(
    chapters: Sequence[Chapter],
    comparison: Comparison | None,
    models: Sequence[ModelSection] = (),
) -> str:
    """Return the page as HTML."""

    def svg(drawn: Drawn, prefix: str) -> Markup:
        label = f"{drawn.title}. {drawn.about}"
        return Markup(inline_svg(drawn.figure, f"{prefix}-{drawn.key}", label, drawn.narrow))

    lines = tables.lines_of([chapter.source for chapter in chapters])
    networks = tables.networks_of([chapter.source for chapter in chapters])
    random = any(chapter.source.recipe.random for chapter in chapters)
    return template("pipeline.report", "page.html").render(
        chapters=chapters,
        comparison=comparison,
        models=models,
        sentences=_sentences(chapters),
        lines=lines,
        tables=tables.tables_of(lines),
        columns=tables.columns_of(lines),
        markdown=tables.markdown(lines, random=random, networks=networks),
        latex=tables.latex(lines, random=random, networks=networks),
        networks=networks,
        random=random,
        method_title=method_title,
        positive_text=positive_text,
        METRICS=METRICS,
        GLOSSARY=GLOSSARY,
        today=datetime.date.today().isoformat(),
        metric_title=metric_title,
        count=count,
        interval=interval,
        ends=ends_text,
        svg=svg,
        inline=lambda figure, key, label: Markup(inline_svg(figure, key, label)),
        style=Markup(asset("pipeline.report", "page.css")),
        script=Markup(scripts("common.js", "page.js")),
        data=lambda chapter: Markup(_json(map_data(chapter))),
    )


def _sentences(chapters: Sequence[Chapter]) -> list[str]:
    """Return a plain sentence for each task: of the answer that stands for it."""
    sentences = []
    for chapter in chapters:
        source = chapter.source
        name = f"{source.name}: " if len(chapters) > 1 else ""
        shown: dict[str, Result | Segmented] = {**leading_answers(source)}
        for (task, _), answer in source.segmented.items():
            shown.setdefault(f"{task}, segmented", answer)
        sentences += [f"{name}{answer_sentence(answer)}" for answer in shown.values()]
    return sentences


def _printable(value: Any) -> Any:
    """Return a value as a page may have it: of a name's control characters their codes."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return printable(value) if is_text else value


def template(package: str, name: str) -> Template:
    """Return a template of the folder page/ of a package, which escapes what it is given."""
    environment = Environment(
        loader=PackageLoader(package, "page"),
        autoescape=True,
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def scripts(*names: str) -> str:
    """Return the scripts of a page as one."""
    return "\n".join(asset("pipeline.report", name) for name in names)


def asset(package: str, name: str) -> str:
    """Return the text of a file of the folder page/ of a package."""
    return (resources.files(package) / "page" / name).read_text("utf-8")


def _json(data: Any) -> str:
    """Return JSON that may stand in a <script>."""
    # A word such as `</script>` in a table of the user would end the element.
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def map_data(chapter: Chapter) -> dict[str, Any]:
    """Return what the map draws: names and words, and typed arrays in base64, little endian."""
    atlas = chapter.atlas
    assert atlas is not None
    rows = chapter.source.rows
    pictured = {}
    for place, data in chapter.pictures.items():
        pictured[str(place)] = base64.b64encode(data).decode()
    return {
        "n": len(rows),
        "k": atlas.nearest.shape[1],
        "row": _packed(rows, "<u4"),
        "places": [_packed_places(each) for each in atlas.places],
        "columns": [_packed_column(each) for each in atlas.columns],
        "scales": [_packed_scale(each) for each in atlas.scales],
        "pictured": _packed(atlas.pictured, "<u4"),
        # Places among at most PICTURES slices: 16 bits are enough.
        "nearest": _packed(atlas.nearest, "<u2"),
        "cosine": _packed(np.clip(atlas.cosine, -1, 1) * 32767, "<i2"),
        "pictures": pictured,
    }


def _packed_places(places: Places) -> dict[str, Any]:
    return {
        "name": places.name,
        "note": places.note,
        "x": _packed(places.x * 65535, "<u2"),
        "y": _packed(places.y * 65535, "<u2"),
    }


def _packed_column(column: Column) -> dict[str, Any]:
    return {
        "name": column.name,
        "values": column.values,
        "codes": _packed(column.codes, "<u1"),
    }


def _packed_scale(scale: Scale) -> dict[str, Any]:
    return {
        "name": scale.name,
        "low": scale.low,
        "high": scale.high,
        "codes": _packed(_levels(scale), "<u1"),
    }


def _levels(scale: Scale) -> NDArray[np.float64]:
    """Return numbers as 0 to 254 between low and high; 255 where there is none."""
    scaled = (scale.numbers.astype(np.float64) - scale.low) / (scale.high - scale.low)
    return np.where(np.isnan(scaled), 255, np.clip(scaled, 0, 1) * 254)


def _packed(values: NDArray[Any], dtype: str) -> str:
    array = np.ascontiguousarray(np.round(values), dtype)
    return base64.b64encode(array.tobytes()).decode()


# --- files for a paper ---------------------------------------------------------------------------


def _write_figures(
    folder: Path, chapters: Sequence[Chapter], comparison: Comparison | None
) -> Iterator[Path]:
    """Write every figure as SVG and PNG, and the results as tables, whole and short.

    Yields each file before it is written: what is cut short can be taken back.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    figures = _named_figures(chapters)
    if comparison and comparison.forest:
        figures.append(("stores", comparison.forest))
    for key, figure in figures:
        for suffix in (".svg", ".png"):
            path = folder / f"{key}{suffix}"
            yield path
            with writing(folder):
                save(figure, path)
    sources = [chapter.source for chapter in chapters]
    lines = tables.lines_of(sources)
    networks = tables.networks_of(sources)
    random = any(source.recipe.random for source in sources)
    texts = {
        "results.md": tables.markdown(lines, random=random, networks=networks),
        "results.tex": tables.latex(lines, random=random, networks=networks),
        **short_table.files_of(short_table.short_table(sources)),
    }
    for name, text in texts.items():
        yield folder / name
        _put(folder / name, text.encode())


def _named_figures(chapters: Sequence[Chapter]) -> list[tuple[str, Figure]]:
    """Return each chapter's figures by the names of their files; of several, with the store's."""
    named = []
    for chapter in chapters:
        prefix = f"{chapter.source.name.replace('/', '-')}-" if len(chapters) > 1 else ""
        for figures in chapter.tasks.values():
            named += [(f"{prefix}{drawn.key}", drawn.figure) for drawn in figures]
        if chapter.overview:
            named.append((f"{prefix}overview", chapter.overview.figure))
    return named
