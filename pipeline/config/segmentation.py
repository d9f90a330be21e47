"""Settings of masks and of segmentation heads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from pipeline.config.methods import one_of
from pipeline.config.segmentation_heads import SEGMENTATION_HEADS
from pipeline.shared.frozen import Frozen

# What an expression over paths begins with, where it is no glob.
REGEX = "re:"


class Masks(Frozen):
    """Where the masks are, what joins them to the images, and what their values mean.

    by: path, a pattern over the image's own path; bids, the subject, session and other entities
    that a BIDS folder calls both by; table, a column of `labels.file`; uid, the images that a DICOM
    segmentation or structure set (RTSTRUCT) says it is of. root: the folder of the masks, by
    default data.root. files: glob over the images' paths -> path of the mask under root, in which
    {path}, {folder}, {name} and {stem} stand for the image's path, its folder, its file name and
    that without suffix, and *, ** and ? for whatever one file there has; the first that matches
    wins. Behind re: a glob is a regular expression of the whole path, whose named groups, such as
    (?P<who>...), stand in braces too. By bids, files may be left out, and tells which of an image's
    masks are meant. column: of the table, with paths under root. values: value in the mask, or
    label of a DICOM segment or structure (one of digits alone is a value) -> name of the structure,
    "background" for what is none; or one name, for whatever is not 0; or several, each of a file of
    its own: paths in files, or column, are then as many and in the same order. tolerance: of the
    surface Dice, in mm, or pixels where an image has no spacing.
    """

    by: Literal["path", "bids", "table", "uid"] = "path"
    root: Path | None = None
    files: dict[str, str | tuple[str, ...]] = Field(default_factory=dict)
    column: str | tuple[str, ...] | None = None
    values: str | tuple[str, ...] | dict[int | str, str]
    tolerance: Annotated[float, Field(gt=0)] = 2.0

    @field_validator("values", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        """Take a value of digits as the number that it is, however YAML quotes it."""
        if not isinstance(value, dict):
            return value
        named: dict[Any, Any] = {}
        for key, name in value.items():
            number = int(key) if isinstance(key, str) and key.isdecimal() else key
            if number in named:
                raise ValueError(f"values must name each value once. Got {number} twice instead.")
            named[number] = name
        return named

    @model_validator(mode="after")
    def _complete(self) -> Masks:
        if self.by != "bids":
            self._check_joined("path", "files", bool(self.files))
        self._check_joined("table", "column", bool(self.column))
        self._check_counts()
        if self.apart and (self.by == "uid" or "background" in self.values):
            raise ValueError(
                "Structures in files of their own are joined by path, bids or table, and the "
                f"background has no file. Got by {self.by!r} and {self.values!r}."
            )
        if not 2 <= len(self.classes) <= 256:
            raise ValueError(
                f"Masks must have 1 to 255 structures beside the background. Got {self.values!r}."
            )
        return self

    @field_validator("files")
    @classmethod
    def _expressions(
        cls, value: dict[str, str | tuple[str, ...]]
    ) -> dict[str, str | tuple[str, ...]]:
        for key in value:
            try:
                re.compile(key.removeprefix(REGEX) if key.startswith(REGEX) else "")
            except re.error as error:
                raise ValueError(f"{key!r} must be a regular expression: {error}.") from None
        return value

    def _check_joined(self, by: str, name: str, given: bool) -> None:
        """Raise ValueError where masks joined in a way lack its key, or others have it."""
        if given == (self.by == by):
            return
        verb = "need" if self.by == by else "take no"
        raise ValueError(f"Masks joined by {self.by} {verb} `{name}`.")

    def _check_counts(self) -> None:
        """Raise ValueError where there are not as many files, or columns, as structures."""
        every = [*self.files.values()]
        if self.column:
            every.append(self.column)
        if self.apart and not every:
            raise ValueError("Structures in files of their own need `files`: a pattern for each.")
        for named in every:
            if self.apart != isinstance(named, tuple) or len(self.each(named)) != self.count:
                raise ValueError(
                    f"values and {'files' if self.files else 'column'} must both be lists of equal "
                    f"length where each structure has a file of its own. Got {self.values!r} and "
                    f"{named!r}."
                )

    @property
    def classes(self) -> tuple[str, ...]:
        """The names by label value as heads see it: background, then structures as listed."""
        if isinstance(self.values, dict):
            structures = tuple(self.values.values())
        else:
            structures = self.each(self.values)
        # Once each: several values may be of one structure, or of the background.
        return tuple(dict.fromkeys(["background", *structures]))

    @property
    def apart(self) -> bool:
        """Whether each structure has a file of its own."""
        return isinstance(self.values, tuple)

    @property
    def count(self) -> int:
        """How many files a mask is of."""
        return len(self.values) if isinstance(self.values, tuple) else 1

    @staticmethod
    def each(named: str | tuple[str, ...]) -> tuple[str, ...]:
        """Return what is one or several as several."""
        return (named,) if isinstance(named, str) else named


def _known(method: str) -> str:
    """Return the name of a segmentation head. Raises what a `Literal` of them would."""
    return one_of(method, tuple(SEGMENTATION_HEADS))


class Segment(Frozen):
    """How a segmentation head, or a network from scratch, is trained and chosen.

    method: what is trained, or asked. learning_rates: all are trained at once, and one is chosen by
    the Dice on val; the defaults are those of arXiv 2312.02366, whose batches are of 128. epochs:
    at most. patience: epochs without a better Dice on val before it ends; the best epoch is kept.
    batch_size: slices a step. loss: MONAI's, softmax. refit: whether what was chosen is trained
    again on train and val, as there, for as many epochs. k: of kNN, which takes refit and seed too:
    the neighbours asked, of which one number is chosen on val. temperature: of their votes.
    references: how many patches kNN keeps at most. seed: of what is drawn. size: of a network from
    scratch; `small` is for tests and for trying out without a GPU. shots: numbers of training
    patients to be tried as well as all of them, never trained again on val. draws: how often each
    is drawn.
    """

    method: Annotated[str, AfterValidator(_known)] = "linear"
    learning_rates: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (
        1e-4,
        5e-4,
        1e-3,
        5e-3,
        1e-2,
        5e-2,
        1e-1,
    )
    epochs: Annotated[int, Field(ge=1)] = 10
    patience: Annotated[int, Field(ge=1)] = 10
    batch_size: Annotated[int, Field(ge=1)] = 16
    loss: Literal["dice", "dice-ce"] = "dice"
    refit: Literal["train+val", "none"] = "train+val"
    k: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 5, 20, 50)
    temperature: Annotated[float, Field(gt=0)] = 0.07
    references: Annotated[int, Field(ge=1)] = 100_000
    size: Literal["full", "small"] = "full"
    seed: int = 0
    shots: tuple[Annotated[int, Field(ge=1)], ...] = ()
    draws: Annotated[int, Field(ge=1)] = 5
