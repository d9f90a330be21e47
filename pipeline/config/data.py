"""Settings of the collection, its labels, its store and where it is embedded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pipeline.config.modalities import modality_code
from pipeline.config.tasks import Missing, Uncertain
from pipeline.recipe import Output, PatchTokens, Precision, Raptor, Treatment
from pipeline.shared.frozen import Frozen
from stores.layout import Layout

_ROOT_NAME = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


class Data(Frozen):
    """Which files to embed, and what their headers do not say.

    Of a BIDS folder its names say it (docs/recipes.md), where the config does not.

    Hidden folders, what systems and tools keep for themselves, and stores of radprobe are never
    searched, unless a glob of `include` has their name. root: the folder of the collection.
    include, exclude: globs over paths relative to root. modality: glob -> DICOM modality code, for
    files that carry none (NIfTI, PNG); the first glob that matches wins. patient: a regular
    expression whose first group, searched in the relative path, names the patient of such a file.
    study: another, which names its study. tags: DICOM keywords, such as AccessionNumber, whose
    values labels are keyed by. paths: whether the store hides the names of folders and files, which
    may name patients, or keeps them. only: "masked" embeds those slices alone that have a mask file
    (see `Masks`), of a volume all. leave_out: flags of the slice table, such as secondary-capture,
    burned-in or localizer, whose slices are not embedded. roots: where a config gives `root` names
    (`root: {site_a: /path, site_b: /path}`), the folder of each, and root is a folder of links to
    them. A name is the first folder of every path there, and stands before every id: patient 7 of
    two sites is two people, `site_a/7` and `site_b/7`.
    """

    root: Path
    roots: dict[str, Path] = Field(default_factory=dict)
    include: tuple[str, ...] = ("**",)
    exclude: tuple[str, ...] = ()
    modality: dict[str, str] = Field(default_factory=dict)
    patient: str | None = None
    study: str | None = None
    tags: tuple[str, ...] = ()
    paths: Literal["hide", "keep"] = "hide"
    only: Literal["all", "masked"] = "all"
    leave_out: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        """Take `root` apart where it has names; which folder has the links, the store says."""
        if isinstance(given, dict) and isinstance(given.get("root"), dict):
            return {**given, "roots": given["root"], "root": Path()}
        return given

    @field_validator("roots")
    @classmethod
    def _are_folder_names(cls, value: dict[str, Path]) -> dict[str, Path]:
        for name in value:
            if not _ROOT_NAME.fullmatch(name):
                raise ValueError(
                    "A root's name must be letters, digits, _ and -, since it is a folder of every "
                    f"path. Got {name!r} instead."
                )
        return value

    def id_of(self, path: str, raw: str) -> str:
        """Return an identifier of a file (by its path under root) as it is told from other sites'.

        That of a root without names is itself.
        """
        return f"{path.partition('/')[0]}/{raw}" if self.roots else raw

    @field_validator("modality")
    @classmethod
    def _codes(cls, value: dict[str, str]) -> dict[str, str]:
        return {glob: modality_code(word) for glob, word in value.items()}

    @field_validator("patient", "study")
    @classmethod
    def _one_group(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None:
            name = info.field_name
            try:
                groups = re.compile(value).groups
            except re.error as error:
                raise ValueError(
                    f"{name} must be a regular expression. {value!r}: {error}."
                ) from None
            if groups != 1:
                raise ValueError(f"{name} must have exactly one group. Got {value!r} instead.")
        return value


class Demo(Frozen):
    """A synthetic collection to be written to `data.root` on the spot.

    Only a config with this block may fall back to random weights. patients: how many are made up.
    seed: of all that is drawn.
    """

    patients: Annotated[int, Field(ge=10)] = 60
    seed: int = 0


class BackboneChoice(Frozen):
    """Which network, and where its weights are.

    name: as `radprobe weights list` has it, or `hf:` and a folder or repository of transformers, or
    `timm:` and a name of timm's. weights: a file or folder; `random:<seed>` asks for untrained
    weights by name; unset means the local cache, then the hub. image_size: the side of the
    network's input, in pixels. precision: what the network computes in; the lower ones are several
    times faster on a GPU and change features beyond rounding (`doctor --drift` tells by how much).
    treatment: `paper` gives comparators what the code of arXiv 2312.02366 gives them.
    """

    name: str = "dinov2_vits14"
    weights: str | None = None
    image_size: int = 224
    precision: Precision = "float32"
    treatment: Treatment = "own"


class Outputs(Frozen):
    """What to store of each slice.

    keep: the CLS tokens, the mean patch token, all patch tokens; or a vector of the whole volume
    (`volume`), and nothing else: a 3D network's own, and of a network of slices Raptor's. patch:
    how, where patch tokens are among it; raptor: how, where it is Raptor's. blocks: of how many
    last blocks CLS tokens are stored. dtype: of what is stored. part_rows: rows that are committed
    together, a power of two; unset, as many as a part's memory allows. Fewer lose less to a crash,
    more make fewer files.
    """

    keep: tuple[Output, ...] = ("cls", "mean")
    patch: PatchTokens = PatchTokens()
    raptor: Raptor = Raptor()
    blocks: int = 4
    dtype: Literal["float16", "float32"] = "float16"
    part_rows: int | None = None

    @field_validator("part_rows")
    @classmethod
    def _divides(cls, part_rows: int | None) -> int | None:
        """Refuse a number of rows that no part can have."""
        if part_rows is not None:
            Layout(part_rows)
        return part_rows


# What split.column and subgroups call the name of a row's root.
ROOT_COLUMN = "data.root"
# A missing value as pandas, polars and pyarrow write and read it, in any case. `None` is not among
# them: it may be a class.
EMPTY = (
    *("NA", "N/A", "<NA>", "#N/A", "#NA", "#N/A N/A", "NULL", "<NULL>", "NaN", "-NaN", "NaT"),
    *("1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
)


class Labels(Frozen):
    """Where the labels are, what joins them to the slices, and what unclear values mean.

    file: the table of labels, or a BIDS folder, whose own tables are read; without labels, that of
    data.root where it is one. key: the column with a file or folder path (relative to data.root),
    or with a patient, study or series id, or with the value of a DICOM tag listed in data.tags, as
    `by` says. by: what `key` holds; of a tag, tag: and its keyword ("tag:AccessionNumber").
    patient: the column that names each row's patient, for files whose headers do not. headers:
    whether that column and the headers must agree on which slices are one patient's, or the headers
    are wrong. uncertain: what -1 means in a column of zeros and ones ("zero" is U-Zeros of Irvin et
    al., arXiv 1901.07031); missing: what an empty cell means; where it means 0, a cross (x) in a
    column of nothing else means 1; empty: what is written, in any case,
    in a cell that holds nothing: a class that is called NA is taken out of this list. dates: how
    days are written that do not begin with the year, such as 3.4.2024; 3/4/2024 and 3-4-2024 are
    too. root: the column that says under which name of data.root a row's path, or id, is.
    structure: of tasks of level region, the column that says which structure a row is of; unset, a
    row is of all that lies in what it names.
    """

    file: Path
    key: str = "path"
    by: str = "path"
    patient: str | None = None
    headers: Literal["agree", "ignore"] = "agree"
    uncertain: Uncertain = "refuse"
    missing: Missing = "leave-out"
    empty: tuple[str, ...] = EMPTY
    dates: Literal["year-month-day", "day.month.year"] = "year-month-day"
    root: str | None = None
    structure: str | None = None

    @field_validator("by")
    @classmethod
    def _is_key(cls, value: str) -> str:
        if re.fullmatch(r"path|patient|study|series|tag:[A-Za-z0-9]+", value) is None:
            raise ValueError(
                "must be path, patient, study, series, or tag: and a keyword of data.tags, such as "
                "tag:AccessionNumber"
            )
        return value


SplitKind = Literal["holdout", "kfold", "list", "site", "date"]


class SplitChoice(Frozen):
    """How patients are divided.

    kind: of a holdout's `folds` parts one tests, one validates, the rest train; in kfold each part
    tests in turn; list goes as `file` says; in site what `column` holds stays on one side; in date
    its latest test. folds: how many parts there are. seed: of the keys by which patients are dealt.
    file: of a list, a CSV of the columns key (as labels.by) and part. column: the label column that
    has the site or the date. new: what becomes of patients that a
    split on file does not know. allow: what is otherwise refused as leakage. group: "duplicates"
    puts patients who have copies of an image, or what is all but one, on one side.
    """

    kind: SplitKind = "holdout"
    folds: Annotated[int, Field(ge=3)] = 5
    seed: int = 0
    file: Path | None = None
    column: str | None = None
    new: Literal["refuse", "deal", "leave-out"] = "refuse"
    allow: tuple[Literal["duplicates", "near-duplicates"], ...] = ()
    group: Literal["none", "duplicates"] = "none"

    @model_validator(mode="after")
    def _complete(self) -> SplitChoice:
        needs = {"list": "file", "site": "column", "date": "column"}.get(self.kind)
        for name in ("file", "column"):
            if (getattr(self, name) is not None) != (name == needs):
                verb = "needs" if name == needs else "takes no"
                raise ValueError(f"A split of kind {self.kind!r} {verb} `{name}`.")
        if self.new == "deal" and not self.deals:
            raise ValueError(
                f"New patients cannot be dealt into a split of kind {self.kind!r}. Set new to "
                '"refuse" or "leave-out".'
            )
        if self.group == "duplicates" and not self.deals:
            raise ValueError(
                f"Copies cannot be put on one side in a split of kind {self.kind!r}, which says "
                "itself where patients stand. Leave group out, or choose holdout or kfold."
            )
        return self

    @property
    def deals(self) -> bool:
        """Whether radprobe deals the patients, and no list, site or date says where they stand."""
        return self.kind in ("holdout", "kfold")


class JobQueue(Frozen):
    """Jobs of a batch system that embed: `workers` jobs of one process each, by dask-jobqueue.

    kind: the batch system. workers: how many jobs. options: as dask-jobqueue's cluster class of
    that kind takes them (queue, walltime, memory, job_extra_directives, ...); a job has one core
    for Python unless they say so.
    """

    kind: Literal["slurm", "pbs", "lsf", "sge"]
    workers: Annotated[int, Field(ge=1)]
    options: dict[str, Any] = Field(default_factory=dict)
