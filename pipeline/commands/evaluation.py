"""Ask a store: scores of every task, nearest studies, stores side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from pipeline.commands.common import (
    ConfigArg,
    JsonOpt,
    MinuteLines,
    PathsOpt,
    StoreOpt,
    busy,
    err,
    out,
)
from pipeline.commands.printing import (
    print_line,
    score_in,
    show_across,
    show_agreements,
    show_differences,
    show_hits,
    show_patches,
    show_results,
    show_segmented,
    show_tuned,
)
from pipeline.config.heads import DEFAULT_HEADS, HEADS, TUNED, Registered, method_names
from stores.errors import ConfigError, LabelError, UnansweredError

if TYPE_CHECKING:
    from pipeline.config.methods import Method
    from pipeline.config.root import Config
    from pipeline.config.tasks import Level
    from pipeline.evaluation.compare import Results
    from pipeline.results import Difference, Result, Segmented
    from pipeline.segmentation.regions import Gathered

Name = TypeVar("Name", bound=str)
ComparedStore = Annotated[
    Path, typer.Argument(help="The folder of a store, its URL, or its config file.")
]

app = typer.Typer()
DeviceOpt = Annotated[
    str | None, typer.Option(help="Where to fit, such as cuda; by default the CPU.")
]
PredictionsOpt = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Write what was predicted of each test unit, by path: .csv, .parquet or .json.",
    ),
]


@app.command(epilog="Example: radprobe evaluate configs/demo.yaml --out predictions.csv")
def evaluate(
    config: ConfigArg,
    store: StoreOpt = None,
    predictions: PredictionsOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Answer every task of the config from the store: kNN, probe and few-shot, survival by Cox."""
    _answer(config, store, DEFAULT_HEADS, as_json, predictions)


def _add_head(name: str, head: Registered) -> None:
    """Add the command of a head, which answers every task of the config by it alone."""

    def answer(
        config: ConfigArg,
        store: StoreOpt = None,
        predictions: PredictionsOpt = None,
        as_json: JsonOpt = False,
    ) -> None:
        _answer(config, store, (name,), as_json, predictions)

    def answer_on_device(
        config: ConfigArg,
        store: StoreOpt = None,
        device: DeviceOpt = None,
        predictions: PredictionsOpt = None,
        as_json: JsonOpt = False,
    ) -> None:
        _answer(config, store, (name,), as_json, predictions, device)

    command = app.command(
        name, help=head.help, epilog=f"Example: radprobe {name} configs/demo.yaml"
    )
    command(answer_on_device if head.on_device else answer)


for _name, _head in HEADS.items():
    _add_head(_name, _head)


@app.command(epilog="Example: radprobe tune my.yaml --method lora --device cuda")
def tune(
    config: ConfigArg,
    method: Annotated[
        list[str] | None,
        typer.Option(help="finetune, lora, bitfit, norm, frozen; by default all the config has."),
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda:1, mps; with --processes, cuda is every GPU.")
    ] = "auto",
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that share every step, each with its own GPU.")
    ] = 1,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that read files; by the machine if not given."),
    ] = None,
    checkpoint_s: Annotated[
        float, typer.Option(min=0, help="Seconds between two checkpoints.")
    ] = 300.0,
    store: StoreOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Train the network itself on tasks and masks: all of it, or LoRA, biases, norms; save, score.

    Stopped at any moment, it goes on from its last checkpoint.
    """
    from pipeline.config.loading import load_config
    from pipeline.tune import tune, tune_masks

    methods = None if not method else [_one_of(TUNED, "--method", name) for name in method]
    settings = load_config(config, store)
    results: list[Result] = []
    outlined: list[Segmented] = []
    # A config may have tasks, masks or both; with neither, `tune` says what is missing.
    with _steps("tune") as progress:
        how: dict[str, Any] = {"device": device, "processes": processes, "workers": workers}
        how |= {"checkpoint_s": checkpoint_s, "progress": progress}
        unanswered: UnansweredError | None = None
        if settings.tasks or not settings.masks:
            try:
                results = tune(settings, methods, **how)
            except UnansweredError as error:
                results = error.answers
                unanswered = error
        if settings.masks:
            outlined = tune_masks(settings, methods, **how)
    if as_json:
        answers = [each.model_dump(mode="json") for each in (*results, *outlined)]
        print(json.dumps(answers, indent=1))
    else:
        if results:
            show_results(out, results, settings)
        if outlined:
            show_segmented(out, outlined)
        show_tuned(out, [*results, *outlined], settings.store)
    # What was answered is shown all the same, and the error said after it.
    if unanswered is not None:
        raise unanswered


@contextmanager
def _steps(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show steps and time left of long work; where stderr is no terminal, a line a minute."""
    if not err.is_terminal:
        with MinuteLines(what=title).watched() as lines:
            yield lines.tell
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Left

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Left(),
    )
    with Progress(*columns, console=err, transient=True) as bars:
        bar = bars.add_task(title, total=None)

        def advance(text: str, done: int, total: int) -> None:
            bars.update(bar, description=text, completed=done, total=total)

        yield advance


@app.command(epilog="Example: radprobe segment configs/demo_segment.yaml --out predictions")
def segment(
    config: ConfigArg,
    out_to: Annotated[
        Path | None,
        typer.Option("--out", help="Write predictions and pictures of them into this new folder."),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where heads are trained: auto, cpu, cuda:1, mps.")
    ] = "auto",
    store: StoreOpt = None,
    paths: PathsOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Train each head of the config on cached patch tokens and score it against the masks."""
    from pipeline.segment import segment
    from pipeline.segmentation.predictions import check_empty, write_predictions

    settings = _checked_config(config, store)
    if out_to:
        check_empty(out_to)  # before hours of work
    with _steps("segment") as progress:
        try:
            answers = segment(settings, device=device, progress=progress)
        except UnansweredError as error:
            # What was answered is shown all the same, and the error said after it.
            _print_segmented(_with_paths(error.answers, settings, paths), as_json)
            raise
    written, failed = write_predictions(settings, out_to) if out_to else ([], [])
    _print_segmented(_with_paths(answers, settings, paths), as_json)
    if not as_json:
        if out_to:
            out.print(f"{len(written)} files written under {out_to}.", highlight=False)
        for each in failed:
            out.print(f"Not written: {each.source}: {each.detail}.", highlight=False)
    if failed or any(answer.tally.unmatched_labels for answer in answers):
        raise typer.Exit(1)


def _with_paths(answers: Sequence[Segmented], config: Config, reveal: bool) -> Sequence[Segmented]:
    """Return answers whose masks that cannot be used are named by their real paths, if asked to."""
    from pipeline.shared.pseudonyms import load_key, reveal_path

    if not reveal:
        return answers
    key = load_key(config.store)
    shown = []
    for answer in answers:
        examples = []
        for each in answer.tally.unmatched_label_examples:
            path, space, why = each.partition(" ")
            examples.append(f"{reveal_path(key, path)}{space}{why}")
        tally = answer.tally.model_copy(update={"unmatched_label_examples": tuple(examples)})
        shown.append(answer.model_copy(update={"tally": tally}))
    return shown


def _print_segmented(answers: Sequence[Segmented], as_json: bool) -> None:
    if as_json:
        print(json.dumps([answer.model_dump(mode="json") for answer in answers], indent=1))
    elif answers:
        show_segmented(out, answers)


@app.command(epilog="Example: radprobe regions configs/demo_regions.yaml")
def regions(config: ConfigArg, store: StoreOpt = None, as_json: JsonOpt = False) -> None:
    """Gather the regions that tasks of level region ask for: masks, and cached patch tokens.

    `evaluate` does so by itself. What did not change since is kept.
    """
    settings = _checked_config(config, store)
    gathered = _gather_regions(settings)
    if not gathered:
        raise ConfigError(
            "No task of the config is of level region. Write `level: region` and `region: {masks: "
            "NAME}` into one."
        )
    if as_json:
        print(json.dumps([asdict(each) for each in gathered], indent=1))
        return
    for each in gathered:
        for line in each.lines():
            print_line(out, line)


@app.command(epilog="Example: radprobe crops my.yaml lungs crops --margin-mm 10")
def crops(
    config: ConfigArg,
    masks: Annotated[str, typer.Argument(help="The masks whose structures are cut out, by name.")],
    folder: Annotated[Path, typer.Argument(help="Where crops and their config are written.")],
    margin_mm: Annotated[
        float, typer.Option(min=0, help="Margin, in mm; in pixels where files name no spacing.")
    ] = 10.0,
    store: StoreOpt = None,
) -> None:
    """Write a square crop round each structure of masks, as a collection to be embedded by itself.

    Crops that are there and did not change stay, and so do their features.
    """
    from pipeline.segmentation.crops import write_crops

    written = write_crops(_checked_config(config, store), masks, folder, margin_mm)
    print_line(out, f"{written.crops} crops are in {folder}, {written.new} of them new.")
    for fault in written.faults:
        print_line(out, fault)
    print_line(out, f"Embed them: radprobe extract {written.config}")
    for each in written.lost:
        print_line(out, f"Not cut: {each}: its image cannot be read any more.")
    if written.lost:
        raise typer.Exit(1)


@app.command(epilog="Example: radprobe search configs/demo.yaml ct/0042 --k 5")
def search(
    config: ConfigArg,
    query: Annotated[
        str,
        typer.Argument(help="A row, a path of the collection, a patient; or an image elsewhere."),
    ],
    k: Annotated[int, typer.Option(min=1, help="How many neighbours.")] = 10,
    level: Annotated[str, typer.Option(help="image, series, study or patient.")] = "series",
    at: Annotated[
        str | None,
        typer.Option(help="A pixel x,y of one slice: the most similar patches are found."),
    ] = None,
    store: StoreOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Find the nearest series of a slice, file, folder or patient; its own patient is left out.

    A file or folder that is not in the store is embedded first, as the store was, and thrown away.
    With --at, of a slice of the store, the patches of other patients most like the one there.
    """
    from pipeline.evaluation.search import recipe_of_store
    from pipeline.fitted.aside import search_anything

    settings = _checked_config(config, store)
    if at is not None:
        _search_patches(settings, query, _pixel(at), k, _level(level), as_json)
        return
    with busy("searching"):
        hits = search_anything(settings, query, k=k, level=_level(level))
    if as_json:
        print(json.dumps([asdict(hit) for hit in hits], indent=1))
    else:
        show_hits(out, hits, recipe_of_store(settings))


def _search_patches(
    config: Config, query: str, at: tuple[int, int], k: int, level: Level, as_json: bool
) -> None:
    """Print the patches of other patients that are most like the one that shows a pixel."""
    from pipeline.evaluation.search import recipe_of_store
    from pipeline.segmentation.patch_search import search_patches

    hits = search_patches(config, query, at, k=k, level=level)
    if as_json:
        print(json.dumps([asdict(hit) for hit in hits], indent=1))
    else:
        show_patches(out, hits, recipe_of_store(config))


def _pixel(text: str) -> tuple[int, int]:
    """Return the column and row that --at names. Raises ConfigError for what is no pixel."""
    x, comma, y = text.partition(",")
    if not (comma and x.strip().isdecimal() and y.strip().isdecimal()):
        raise ConfigError(
            f"--at must be a pixel, column and row from 0, such as 120,88. Got {text!r} instead."
        )
    return int(x), int(y)


@app.command(epilog="Example: radprobe retest my.yaml pairs.csv")
def retest(
    config: ConfigArg,
    pairs: Annotated[
        Path, typer.Argument(help="Table with the columns first and second: files or folders.")
    ],
    store: StoreOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Say how far repeated scans agree: in their features, and in what answers on file say."""
    from pipeline.evaluation.retest import retest
    from pipeline.evaluation.search import recipe_of_store

    settings = _checked_config(config, store)
    with busy("comparing scans"):
        agreements = retest(settings, pairs)
    if as_json:
        print(json.dumps([asdict(one) for one in agreements], indent=1))
    else:
        show_agreements(out, agreements, recipe_of_store(settings))


@app.command(epilog="Example: radprobe compare stores/vits14 stores/vitb14")
def compare(
    first: ComparedStore,
    second: ComparedStore,
    heads: Annotated[
        tuple[str, str] | None,
        typer.Option(help="A method of the first and one of the second, such as knn probe."),
    ] = None,
    across: Annotated[
        bool,
        typer.Option(
            "--across",
            help="Two configs of two collections: fit on the first, test on the second, and say "
            "what is scored above that by fitting on the second.",
        ),
    ] = False,
    as_json: JsonOpt = False,
) -> None:
    """Say what the second store scores above the first, on tasks that both have answered.

    With --heads the second method above the first; the stores may then be the same. Of a config
    those answers count that `evaluate` finds on file.
    """
    if across:
        _compare_across(first, second, heads, as_json)
        return
    from pipeline.evaluation.compare import compare_results
    from pipeline.recipe import recipe_of
    from stores import FeatureStore

    methods = None if heads is None else (_method(heads[0]), _method(heads[1]))
    one, other = _answers_of(first), _answers_of(second)
    with busy("comparing"):
        pairs = compare_results(one, other, methods)
    networks = [recipe_of(FeatureStore.open(store)).network for store, _ in (one, other)]
    if as_json:
        rows = []
        for result, differences in pairs:
            positive = None if result.positive is None else result.positive.model_dump()
            about = {"task": result.task, "method": result.method, "positive": positive}
            about |= {"first": networks[0], "second": networks[1]}
            rows += [about | difference.model_dump(mode="json") for difference in differences]
        print(json.dumps(rows, indent=1))
    else:
        show_differences(out, pairs, _sides((first, second), networks, methods))


def _sides(
    paths: tuple[Path, Path], networks: Sequence[str], methods: tuple[Method, Method] | None
) -> list[str]:
    """Return what two sides of a comparison are called: by all in which they differ."""
    sides = list(networks)
    if paths[0] != paths[1]:
        sides = [f"{path}: {side}" for path, side in zip(paths, sides, strict=True)]
    if methods is not None and methods[0] != methods[1]:
        sides = [f"{name} on {side}" for name, side in zip(methods, sides, strict=True)]
    return sides


def _compare_across(
    first: Path, second: Path, heads: tuple[str, str] | None, as_json: bool
) -> None:
    """Print what fitting on a collection scores above fitting on another, both tested on it."""
    from pipeline.evaluate import evaluate, fitting
    from pipeline.evaluation.compare import compare_results, with_predictions

    config = _checked_config(second)
    paired = config.model_copy(update={"fit_on": _checked_config(first)})
    home = with_predictions(config.store, fitting(config))
    methods = {method for _, method in home} & HEADS.keys()
    if heads is not None:
        methods = {_method(heads[0])}
    chosen = [name for name in HEADS if name in methods]
    if not home or not chosen:
        raise LabelError(
            f"{str(second)!r} has answered no task by heads on features, beside which others could "
            f"be held. Run `radprobe evaluate {second}`, or such as `radprobe knn {second}`."
        )
    _gather_regions(paired)
    with _steps("evaluate") as progress:
        away = with_predictions(config.store, evaluate(paired, chosen, progress=progress))
    both = None if heads is None else (_method(heads[0]), _method(heads[1]))
    table = compare_results((config.store, away), (config.store, home), both)
    rows = []
    for result, differences in table:
        method = result.method if both is None else both[0]
        rows.append((away[result.task, method], result, differences))
    if as_json:
        print(json.dumps(list(_rows_across(rows)), indent=1))
    else:
        show_across(out, rows)


def _rows_across(
    rows: Sequence[tuple[Result, Result, list[Difference]]],
) -> Iterator[dict[str, Any]]:
    """Yield a row a metric: who was fitted where, what each scores, and the difference."""
    for away, home, differences in rows:
        assert away.fitted_on is not None
        about = {
            "task": home.task,
            "methods": [away.method, home.method],
            "positive": None if home.positive is None else home.positive.model_dump(),
            "fitted_on": [away.fitted_on.name, away.fitted_on.tested_on],
            "tested_on": away.fitted_on.tested_on,
        }
        for each in differences:
            scores = [score_in(result, each).model_dump() for result in (away, home)]
            yield about | {"scores": scores} | each.model_dump(mode="json")


def _checked_config(path: Path, store: Path | None = None) -> Config:
    """Return a config, or that with another store, once the store was made as the config says."""
    from pipeline.config.loading import load_config
    from pipeline.extraction.same_store import check_store

    config = load_config(path, store)
    check_store(config)
    return config


def _answers_of(path: Path) -> tuple[Path, Results]:
    """Return the store that a path names and its newest answers, or of a config those that fit it.

    A config without tasks asks for nothing that an answer could be held against.
    """
    from pipeline.evaluate import fitting
    from pipeline.evaluation.compare import newest, with_predictions
    from stores.storage import located

    if not path.is_file():
        store = located(path)
        return store, newest(store)
    config = _checked_config(path)
    if not config.tasks:
        return config.store, newest(config.store)
    return config.store, with_predictions(config.store, fitting(config))


def _level(name: str) -> Level:
    """Return a level of whole images by name. Raises ConfigError for another word."""
    from pipeline.annotations.levels import LEVELS

    of_images = tuple(name for name, level in LEVELS.items() if level.is_whole)
    return _one_of(of_images, "--level", name)


def _method(name: str) -> Method:
    """Return a method by name. Raises ConfigError for another word."""
    return _one_of(method_names(), "--heads", name)


def _one_of(known: tuple[Name, ...], option: str, name: str) -> Name:
    """Return what an option names. Raises ConfigError with the words that it takes."""
    for each in known:
        if each == name:
            return each
    raise ConfigError(f"{option} must be of {', '.join(known)}. Got {name!r} instead.")


def _answer(
    config: Path,
    store: Path | None,
    methods: Sequence[Method],
    as_json: bool,
    predictions: Path | None = None,
    device: str | None = None,
) -> None:
    """Answer the config's tasks by the methods, and print tables or one JSON document.

    predictions: where what was predicted is written, if anywhere.
    """
    from pipeline.evaluate import evaluate
    from pipeline.shared.table_files import check_suffix

    settings = _checked_config(config, store)
    if predictions is not None:
        check_suffix(predictions)  # before anything is computed
    try:
        _gather_regions(settings)
    except (ConfigError, LabelError) as error:
        # Tasks of whole images are answered all the same; those of regions say what is missing.
        print_line(err, f"Regions are not gathered: {error}")
    unanswered: UnansweredError | None = None
    try:
        with _steps("evaluate") as progress:
            results = evaluate(settings, methods, device=device, progress=progress)
    except UnansweredError as error:
        results = error.answers
        unanswered = error
    _print_results(results, settings, as_json)
    _write_predictions(results, settings, predictions)
    # What was answered is shown all the same, and the error said after it.
    if unanswered is not None:
        raise unanswered
    if not any(result.scores for result in results):
        if not as_json:
            print_line(err, "Nothing that was asked has a score: the lines above say why.")
        raise typer.Exit(1)


def _gather_regions(config: Config) -> list[Gathered]:
    """Bring the regions of tasks that ask for some up to the masks; without any, import nothing."""
    if not any(task.region for task in config.tasks.values()):
        return []
    from pipeline.segmentation.regions import update_regions

    with _steps("regions") as progress:
        return update_regions(config, progress)


def _write_predictions(results: Sequence[Result], config: Config, path: Path | None) -> None:
    """Write what answers predicted, and say where; nothing without a path."""
    if path is None:
        return
    from pipeline.evaluation.prediction_rows import PREDICTION_SCHEMA, prediction_rows
    from pipeline.shared.table_files import table_writer

    rows = prediction_rows(config, results)
    with table_writer(path, PREDICTION_SCHEMA) as write:
        write(rows)
    print_line(err, f"{len(rows)} rows of predictions are in {path}.")


def _print_results(results: Sequence[Result], config: Config, as_json: bool) -> None:
    if as_json:
        print(json.dumps([result.model_dump(mode="json") for result in results], indent=1))
    elif results:
        show_results(out, results, config)
