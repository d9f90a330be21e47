"""Answers as tables on a console: with intervals, and with what they came from."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from pipeline.report.wording import (
    few_note,
    few_text,
    method_title,
    metric_title,
    notes_once,
    point_text,
    positive_name,
    positive_text,
    rule_text,
    setting_text,
    table_kind,
    units_alone,
    units_text,
)
from pipeline.shared.texts import count, one_line, plain_number, printable

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.config.root import Config
    from pipeline.config.tasks import Part
    from pipeline.evaluation.retest import Agreement
    from pipeline.evaluation.search import Hit
    from pipeline.fitted.validate import AnyValidation, Validation
    from pipeline.fitted.validate_masks import MaskValidation
    from pipeline.recipe import Recipe
    from pipeline.results import Difference, Metric, Result, Score, Segmented, Tally
    from pipeline.segmentation.patch_search import PatchHit

RANDOM = (
    "RANDOM WEIGHTS: an untrained network made these numbers; they say nothing of a trained one."
)
# The metrics a table shows; a result's file holds the others too.
HEADLINES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced acc.",
    "auroc": "AUROC",
    "r2": "R2",
    "mae": "MAE",
    "rmse": "RMSE",
    "correlation": "correlation",
    "c_harrell": "Harrell's C",
    "c_uno": "Uno's C",
}

# What a table of findings shows: how they are ranked, and the rates at the operating point.
RATES = {
    "auroc": "AUROC",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "PPV",
    "npv": "NPV",
}

# What a table of segmentations shows; a result's file has IoU too. Where images name no
# spacing, a note says that HD95 is in pixels. A ceiling is what resizing alone leaves of Dice.
SEGMENTATION = {
    "dice": "Dice",
    "hd95": "HD95, mm",
    "nsd": "NSD",
    "dice_ceiling": "ceiling",
    "paper_dice": "paper's Dice",
    "paper_jaccard": "Jaccard",
    "fit_seconds": "fit, s",
}


class PlainConsole(Console):
    """Prints names as they are, whoever chose them: no markup, no emoji, no control character."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text as it is drawn; tables draw their cells by this as well."""
        return super().render_str(printable(text), **options)


class _NamesTable(Table):
    """A table whose cells are one line each, whatever is named in them."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a line."""
        plain = [one_line(cell) if isinstance(cell, str) else cell for cell in cells]
        super().add_row(*plain, **options)


def print_line(console: Console, text: str, style: str | None = None) -> None:
    """Print one line as it is: paths and messages hold brackets and numbers, and are not folded."""
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def print_lines(console: Console, lines: Iterable[str]) -> None:
    """Print lines as they are."""
    for line in lines:
        print_line(console, line)


def _table(title: str, words: Sequence[str], numbers: Sequence[str]) -> Table:
    table = _NamesTable(
        title=one_line(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for column in words:
        table.add_column(column, no_wrap=True)
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _print(out: Console, table: Table) -> None:
    """Print a table with all its cells whole, also where that is wider than the console."""
    # Apart, since a table would fold its title to its own width, through the middle of names.
    out.print(table.title, style="italic", highlight=False, soft_wrap=True)
    table.title = None
    wanted = Measurement.get(out, out.options.update(max_width=10_000), table).maximum
    table.width = wanted if wanted > out.width else None
    out.print(table, crop=False)


def show_results(out: Console, results: Sequence[Result], config: Config | None = None) -> None:
    """Print a table a method and kind of question: a line a task and setting, with intervals.

    The intervals are of 95 %; a star marks the setting that val chose of several. config: of the
    store in which the predictions are, where that is to be told.
    """
    if any(result.provenance.random for result in results):
        out.print(RANDOM, style="bold yellow")
    # Classes, numbers and survival have no metric in common: a method may have a table of each.
    tables: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        tables.setdefault((result.method, table_kind(result)), []).append(result)
    for answers in tables.values():
        _show_method(out, answers)
    _show_few(out, results)
    _show_sides(out, results, config)
    for whose, note in notes_once(results):
        out.print(f"{whose}: {note}.", highlight=False)
    _show_origin(out, results)
    if config is not None:
        _show_predictions(out, results, config.store)


def _show_sides(out: Console, results: Sequence[Result], config: Config | None) -> None:
    """Say once of each task how much trained and validated; its shortcuts stand on its split."""
    tasks = {result.task: result for result in results}
    in_folds = config is not None and config.split.kind == "kfold"
    of_first = " in the first fold" if in_folds else ""
    for name, result in tasks.items():
        if name.rpartition("/")[0] not in tasks:
            sides = (
                f"trained on {_counted(result, 'train')}, validated on {_counted(result, 'val')}"
            )
            print_line(out, f"{name}: {sides}{of_first}.")


def _show_predictions(out: Console, results: Sequence[Result], store: Path) -> None:
    """Say where the predictions of the test units are; few-shot episodes have none."""
    from pipeline.evaluation.result_files import RESULTS, predictions_path

    files = {path for each in results if (path := predictions_path(store, each)).is_file()}
    if len(files) == 1:
        print_line(out, f"What was predicted of each test unit is in {files.pop()}.")
    elif files:
        print_line(
            out,
            f"What was predicted of each test unit is in {store / RESULTS}, a Parquet file an "
            "answer: METHOD-KEY.parquet, by the first 16 digits of `key` in results.jsonl.",
        )


def _show_few(out: Console, answers: Sequence[Result] | Sequence[Segmented]) -> None:
    """Say what it means that a score is of few test patients, where any is."""
    note = few_note(answers)
    if note:
        print_line(out, note)


def _show_method(out: Console, answers: Sequence[Result]) -> None:
    """Print the table of one method; none where no answer has a score: its notes say why."""
    features = ", ".join(dict.fromkeys(map(_features, answers)))
    stamp = ", RANDOM WEIGHTS" if answers[0].provenance.random else ""
    present: set[str] = set()
    for result in answers:
        for score in result.scores:
            present |= score.metrics.keys()
    shown = [name for name in HEADLINES if name in present]
    networks = ", ".join(dict.fromkeys(each.provenance.network_in_words for each in answers))
    title = f"{method_title(answers[0].method)} on {features} of {networks}{stamp}"
    words = ["task", "tested on", "setting"]
    has_positive = any(positive_name(result) for result in answers)
    if has_positive:
        words.insert(2, "positive")
    table = _table(title, words, [HEADLINES[n] for n in shown])
    for result in answers:
        about = [result.task, _tested_on(result)]
        if has_positive:
            about.append(positive_text(result))
        for score in result.scores:
            setting, *numbers = _score(score, shown)
            # What val chose of several is marked; of shots the last stands for the answer.
            is_chosen = result.chosen >= 0 and score is result.main_score
            is_chosen = is_chosen and len(result.scores) > 1
            table.add_row(*about, f"{setting} *" if is_chosen else setting, *numbers)
    if table.row_count:
        _print(out, table)
        _show_points(out, answers)
        _show_subgroups(out, answers, shown)


def _show_points(out: Console, answers: Sequence[Result]) -> None:
    """Print from which probability on units are called positive, and the rates on test at it."""
    words = ("task", "positive", "by", "called from")
    title = "By finding, at the operating point that val chose"
    table = _table(title, words, list(RATES.values()))
    for result in answers:
        if not result.scores:
            continue
        score = result.main_score
        rule = rule_text(result.question.operating_point)
        for label, metrics in {"": score.metrics, **score.labels}.items():
            positive = positive_text(result, label)
            # What is of all labels together has no point; older answers have none at all.
            if not positive or "sensitivity" not in metrics:
                continue
            name = f"{result.task}: {label}" if label else result.task
            point = point_text(score, label) or "above 0.5"
            numbers = [_number(metrics[n]) if n in metrics else "" for n in RATES]
            table.add_row(name, positive, rule, point, *numbers)
    if table.row_count:
        _print(out, table)


def _show_subgroups(out: Console, answers: Sequence[Result], shown: Sequence[str]) -> None:
    """Print the scores of the test units with each value of a column that a task names."""
    numbers = [HEADLINES[name] for name in shown]
    table = _table("By subgroup", ("task", "subgroup", "tested on"), numbers)
    for result in answers:
        for name, subgroup in result.main_score.subgroups.items() if result.scores else ():
            metrics = [subgroup.metrics.get(each) for each in shown]
            cells = ["" if metric is None else _number(metric) for metric in metrics]
            units = units_text(result.level, subgroup.units, subgroup.patients)
            table.add_row(result.task, name, units, *cells)
    if table.row_count:
        _print(out, table)


def _features(result: Result) -> str:
    scaling = result.settings["scaling"]
    return result.features if scaling == "none" else f"{result.features} ({scaling})"


def _tested_on(result: Result) -> str:
    return f"{_counted(result, 'test')}{few_text(result)}"


def _counted(result: Result, part: Part) -> str:
    side = result.counts[part]
    return units_text(result.level, side.units, side.patients)


def _score(score: Score, metrics: Sequence[str]) -> Iterator[str]:
    """Yield the cells of one line: the setting, then each metric with its interval."""
    yield setting_text(score.setting)
    for name in metrics:
        metric = score.metrics.get(name)
        yield "" if metric is None else _number(metric)


def _number(metric: Metric, sign: str = "") -> str:
    if metric.low is None or metric.high is None:
        return f"{metric.value:{sign}.3f}"
    return f"{metric.value:{sign}.3f} [{metric.low:{sign}.2f}, {metric.high:{sign}.2f}]"


def _show_origin(out: Console, results: Sequence[Result]) -> None:
    """Say what was left out of the tasks, and what the answers came from."""
    for task, tally in {result.task: result.tally for result in results}.items():
        _show_tally(out, task, tally)
    _show_filed(out, results)


def _show_tally(out: Console, task: str, tally: Tally) -> None:
    """Say what was left out of a task."""
    left = {name: n for name, n in tally.model_dump().items() if isinstance(n, int) and n}
    filled = left.pop("filled_labels", 0)
    if filled:
        text = f"{task}: {filled} uncertain or empty values count as 0 or 1, as asked."
        out.print(text, highlight=False)
    units = left.pop("unreadable_units", 0)
    patients = left.pop("unreadable_patients", 0)
    if left:
        each = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in left.items())
        if units:
            each += f"; {count(units, 'unit')}"
            each += f" and {count(patients, 'patient')}" if patients else ""
            each += " lost all slices with the unreadable ones"
        out.print(f"{task}: left out {each}.", highlight=False)


def show_tuned(out: Console, results: Sequence[Result | Segmented], store: Path) -> None:
    """Print what of each network was trained and moved, what that took, and where it is now."""
    numbers = ("trained", "head", "moved", "epoch", "seconds", "peak")
    table = _table("Tuned networks", ("task", "method"), numbers)
    for result in results:
        for each in result.tuned:
            table.add_row(
                result.task,
                method_title(result.method),
                f"{each.trained:,} of {each.parameters:,}",
                f"{each.head:,}",
                str(len(each.moved)),
                f"{each.epoch} of {len(each.history)}",
                f"{each.seconds:.1f}",
                f"{each.peak_bytes / 2**20:,.0f} MiB",
            )
    _print(out, table)
    for result in results:
        for each in result.tuned:
            moved = "moved, of how many blocks each:" if each.moved else "the network is as it was."
            lines = [f"{result.task}, {result.method}: {moved}"]
            lines += [f"  {name}: {n}" for name, n in _by_kind(each.moved).items()]
            lines.append(f"  saved as {store / each.weights}: backbone.weights takes it.")
            print_lines(out, lines)


def _by_kind(names: Sequence[str]) -> Counter[str]:
    """Count parameters by their names without the numbers of blocks."""
    return Counter(re.sub(r"\.\d+\.", ".*.", name) for name in names)


def _show_filed(out: Console, answers: Sequence[Result] | Sequence[Segmented]) -> None:
    """Say how many answers were there already, and what the others took."""
    cached = sum(answer.cached for answer in answers)
    spent = sum(answer.seconds for answer in answers if not answer.cached)
    out.print(
        f"{cached} of {len(answers)} answers were on file; "
        f"{len(answers) - cached} computed in {spent:.1f} s.",
        highlight=False,
    )


def show_segmented(out: Console, answers: Sequence[Segmented]) -> None:
    """Print a table a task: a line a head and number of patients, below it one a structure."""
    if any(answer.provenance.random for answer in answers):
        out.print(RANDOM, style="bold yellow")
    for task in dict.fromkeys(answer.task for answer in answers):
        of_task = [answer for answer in answers if answer.task == task]
        first = of_task[0]
        stamp = ", RANDOM WEIGHTS" if first.provenance.random else ""
        network = first.provenance.network_in_words
        title = f"{task}: {_segmented_on(first)}, by {network}{stamp}"
        table = _table(title, ("head", "setting"), list(SEGMENTATION.values()))
        for answer in of_task:
            for score in answer.scores:
                setting = ", ".join(
                    f"{key} = {plain_number(value)}" for key, value in score.setting.items()
                )
                table.add_row(answer.head, setting, *_marks(score.metrics))
                for structure, metrics in score.labels.items():
                    table.add_row("", f"  {structure}", *_marks(metrics))
        _print(out, table)
        for whose, note in notes_once(of_task):
            out.print(f"{whose}: {note}.", highlight=False)
        # Masks and slices are the task's: every head left out the same.
        _show_left_out(out, task, first.tally)
    _show_few(out, answers)
    _show_filed(out, answers)


def _segmented_on(answer: Segmented) -> str:
    test = answer.counts["test"]
    units = count(test.units, answer.level, {"series": "series"}.get(answer.level, ""))
    return f"{units} of {count(test.patients, 'patient')}{few_text(answer)}"


def _marks(metrics: Mapping[str, Metric]) -> Iterator[str]:
    """Yield the cells of the metrics that a table of segmentations shows."""
    for name in SEGMENTATION:
        metric = metrics.get(name)
        if metric is None:
            yield ""
        elif name == "dice":
            yield _number(metric)
        else:
            # Millimetres and seconds are no shares: tenths are enough.
            digits = 1 if name in ("hd95", "fit_seconds") else 3
            yield f"{metric.value:.{digits}f}"


def _show_left_out(out: Console, task: str, tally: Tally) -> None:
    """Say which masks could not be used, and which slices have none."""
    from pipeline.shared.pseudonyms import HIDDEN

    if tally.unmatched_labels:
        first = "; ".join(tally.unmatched_label_examples)
        out.print(f"{task}: {tally.unmatched_labels} masks cannot be used: {first}.")
        if HIDDEN in first:
            out.print("`radprobe segment CONFIG --paths` tells which files these are.")
    if tally.unmatched_slices:
        text = f"{task}: {tally.unmatched_slices} slices with features have no mask of it."
        out.print(text, highlight=False)


def show_hits(out: Console, hits: Sequence[Hit], recipe: Recipe) -> None:
    """Print the neighbours of a search, nearest first; recipe: of the features."""
    rows = [(hit, (hit.row, hit.slices)) for hit in hits]
    _show_nearest(out, "Nearest", ("row", "slices"), rows, recipe)


def show_patches(out: Console, hits: Sequence[PatchHit], recipe: Recipe) -> None:
    """Print the patches that are most like another, nearest first; recipe: of the features."""
    rows = [(hit, (hit.row, hit.frame, hit.x, hit.y)) for hit in hits]
    _show_nearest(out, "Nearest patches", ("row", "frame", "x", "y"), rows, recipe)


def _show_nearest(
    out: Console,
    what: str,
    columns: tuple[str, ...],
    rows: Sequence[tuple[Hit | PatchHit, tuple[float, ...]]],
    recipe: Recipe,
) -> None:
    """Print hits, each with its numbers in `columns`, and how near it is."""
    if recipe.random:
        out.print(RANDOM, style="bold yellow")
    title = f"{what}, by {recipe.network}"
    table = _table(title, ("path", "modality", "patient"), (*columns, "cosine"))
    for hit, numbers in rows:
        texts = (hit.path, hit.modality, hit.patient or "")
        table.add_row(*texts, *map(str, numbers), f"{hit.cosine:.4f}")
    _print(out, table)


def show_differences(
    out: Console,
    pairs: Sequence[tuple[Result, list[Difference]]],
    sides: Sequence[str],
) -> None:
    """Print what the second store scores above the first, for the metrics that tables show.

    On the test units that both have; who is left out is said below. sides: what the first is
    called, and the second.
    """
    if any(result.provenance.random for result, _ in pairs):
        out.print(RANDOM, style="bold yellow")
    first, second = sides
    title = f"Second ({second}) less first ({first})"
    columns = ("task", "positive", "method", "label", "metric")
    table = _table(title, columns, ("units", "difference", "p (DeLong)", "p (Holm)"))
    alone: dict[str, None] = {}
    for result, differences in pairs:
        for d in differences:
            for text in units_alone(d.paired, result.level):
                alone[f"{result.task}, {result.method}: {text}."] = None
            if d.metric in HEADLINES:
                units = "" if d.paired is None else str(d.paired.units)
                p = ["" if value is None else f"{value:.3g}" for value in (d.p, d.p_holm)]
                positive = positive_text(result, d.label)
                words = (result.task, positive, result.method, d.label, HEADLINES[d.metric])
                table.add_row(*words, units, _number(d.difference, "+"), *p)
    _print(out, table)
    _say_of_p(out, [each for _, differences in pairs for each in differences])
    print_lines(out, list(alone))


def _say_of_p(out: Console, differences: Sequence[Difference]) -> None:
    """Say why a column of p is empty."""
    of_aurocs = [each for each in differences if each.metric == "auroc"]
    if of_aurocs and all(each.p is None for each in of_aurocs):
        print_line(
            out,
            "No p: DeLong's is of AUROCs of one model on each side, whose difference varies, and "
            "each fold has its own model. A difference whose interval holds 0 may be chance.",
        )


def show_across(out: Console, rows: Sequence[tuple[Result, Result, list[Difference]]]) -> None:
    """Print what answers of heads fitted on another collection score, and those fitted here.

    Each row: an answer that was fitted elsewhere, one that was fitted here, and how they differ.
    """
    if any(result.provenance.random for _, result, _ in rows):
        out.print(RANDOM, style="bold yellow")
    names = [away.fitted_on for away, _, _ in rows if away.fitted_on is not None]
    there = names[0].name
    here = names[0].tested_on
    numbers = (f"fitted on {there}", f"fitted on {here}", "difference", "p (DeLong)", "p (Holm)")
    columns = ("task", "positive", "method", "label", "metric")
    table = _table(f"Tested on {here}: fitted on it less fitted on {there}", columns, numbers)
    for away, home, differences in rows:
        methods = dict.fromkeys((method_title(away.method), method_title(home.method)))
        for each in differences:
            if each.metric not in HEADLINES:
                continue
            p = ["" if value is None else f"{value:.3g}" for value in (each.p, each.p_holm)]
            scores = [_number(score_in(result, each)) for result in (away, home)]
            positive = positive_text(home, each.label)
            words = (home.task, positive, ", ".join(methods), each.label, HEADLINES[each.metric])
            table.add_row(*words, *scores, _number(each.difference, "+"), *p)
    _print(out, table)
    _say_of_p(out, [each for _, _, differences in rows for each in differences])
    for away, home, _ in rows:
        text = (
            f"{home.task}: tested on {_tested_on(home)} of {here}; fitted on "
            f"{_counted(away, 'train')} of {there}, and on {_counted(home, 'train')} of {here}."
        )
        out.print(text, highlight=False)


def score_in(result: Result, difference: Difference) -> Metric:
    """Return the score of an answer that a difference is of."""
    score = result.main_score
    metrics = score.labels[difference.label] if difference.label else score.metrics
    return metrics[difference.metric]


def show_agreements(out: Console, agreements: Sequence[Agreement], recipe: Recipe) -> None:
    """Print how far pairs of scans agree; recipe: of the features."""
    if recipe.random:
        out.print(RANDOM, style="bold yellow")
    table = _table(
        f"Repeated scans, by {recipe.network}",
        ("of",),
        ("pairs", "ICC", "5th pct", "cosine", "nearest"),
    )
    for one in agreements:
        shown = ((one.icc, ".3f"), (one.icc_low, ".3f"), (one.cosine, ".4f"), (one.nearest, ".0%"))
        numbers = ("" if value is None else format(value, form) for value, form in shown)
        table.add_row(one.what, str(one.pairs), *numbers)
    _print(out, table)


def show_validation(out: Console, validation: Validation) -> None:
    """Print how a model does elsewhere, beside how it did at home."""
    _show_elsewhere(out, validation)
    _show_tally(out, validation.task, validation.tally)
    _show_calibration(out, "Calibration", validation.calibration)
    _show_calibration(out, "Calibration, as the model calibrates", validation.calibrated)
    made = validation.recalibration
    if made is not None:
        title = f"Calibration, made right on {made.patients} other patients of this collection"
        _show_calibration(out, title, made.metrics)
    _show_distance(out, validation)


def show_mask_validation(out: Console, validation: MaskValidation) -> None:
    """Print how a model draws elsewhere, beside how it did at home."""
    _show_elsewhere(out, validation)
    _show_left_out(out, validation.task, validation.tally)
    labels = validation.score.labels
    if labels:
        table = _table("By structure", ("structure",), list(SEGMENTATION.values()))
        for structure, metrics in labels.items():
            table.add_row(structure, *_marks(metrics))
        _print(out, table)
    _show_distance(out, validation)


def _show_elsewhere(out: Console, validation: AnyValidation) -> None:
    if validation.random:
        out.print(RANDOM, style="bold yellow")
    count = validation.count
    title = f"{validation.task}: {count.units} units of {count.patients} patients"
    table = _table(title, ("metric",), ("here", "at home"))
    for name, metric in validation.score.metrics.items():
        at_home = validation.internal.get(name)
        there = "" if at_home is None else _number(at_home)
        table.add_row(metric_title(name), _number(metric), there)
    _print(out, table)


def _show_distance(out: Console, validation: AnyValidation) -> None:
    """Print how far the images are from the model's, and what else is to be known."""
    lines = [
        f"{_share(validation.unlike)} of the units are unlike the images that the model learnt "
        f"from (5 % of such images would be); a probe tells both apart with an AUROC of "
        f"{validation.domain_auroc:.3f} (0.5 where it cannot)."
    ]
    if validation.left_out:
        lines.append(f"{validation.left_out} units that the model has learnt from were left out.")
    lines += [f"{note}." for note in validation.notes]
    print_lines(out, lines)


def _show_calibration(
    out: Console,
    title: str,
    by_label: Mapping[str, Mapping[str, Metric]],
) -> None:
    if not by_label:
        return
    names = ("slope", "intercept", "in_the_large")
    table = _table(title, ("class",), [name.replace("_", " ") for name in names])
    for label, metrics in by_label.items():
        cells = [_number(metrics[name]) if name in metrics else "" for name in names]
        table.add_row(label, *cells)
    _print(out, table)


def _share(metric: Metric) -> str:
    """Return a share with its interval, in percent."""
    text = f"{metric.value:.1%}"
    if metric.low is None or metric.high is None:
        return text
    return f"{text} [{metric.low:.1%}, {metric.high:.1%}]"
