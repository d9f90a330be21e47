"""Every error radprobe raises on purpose.

RadprobeError
├── ConfigError (ValueError)          a config, a setting or a command line that cannot be used
├── OccupiedError (FileExistsError)   a path that is to be written holds something else
├── WeightsError (ValueError)         weights missing, of another model, or unsafe to load
├── UnreadableError (ValueError)      one file or slice cannot be read; carries a `Reason`
├── TooManyBadError (ValueError)       more bad images than the run may meet
├── LabelError (ValueError)           labels that do not join, or cannot be split by patient
│   └── UnansweredError               some tasks that could not be answered; carries the others
├── ModelError (ValueError)           a model's folder that is damaged, or of another version
├── DeviceError (RuntimeError)        a device that is not there, or too small for the network
├── ClusterError (RuntimeError)       a cluster that cannot be reached, or was lost
├── PartsFailedError (RuntimeError)   parts that could not be embedded; carries the run's summary
└── StoreError
    ├── StoreNotFoundError (FileNotFoundError)
    ├── RecipeMismatchError (ValueError)   the store was made by another recipe; names the fields
    ├── UnalignedWriteError (ValueError)   rows that are not exactly one part
    ├── ClaimedError (RuntimeError)        another live process is writing the part
    ├── StaleTablesError (RuntimeError)    the tables were replaced since they were read
    ├── UnwritableError (OSError)          full disk, quota, read-only, permission
    ├── MissingRowsError (KeyError)        rows asked for that hold no features
    └── CorruptStoreError (ValueError)     what is on disk does not fit its receipt

Each also derives from the builtin a caller would catch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

# What to do about a part that is damaged or lost; ends the sentence that says which.
REPAIR = "Run `radprobe verify --repair` on the store, then `radprobe extract`."

# Why a file or a slice was set aside. The list is short and fixed: reports count by it.
Reason = Literal[
    "empty",  # no bytes
    "not-an-image",  # no known format, or a DICOM object without pixels
    "truncated",  # ends before its pixels do
    "corrupt",  # headers or pixel stream that contradict themselves
    "unsupported",  # a valid file of a kind that has no decoder or no sense as a slice
    "too-large",  # declares more pixels than the limit: a decompression bomb
    "no-permission",
    "vanished",  # there at discovery, gone at reading
    "time-limit",  # decoding took longer than the limit
    "killed",  # the process that read it was killed from outside, as when memory runs out
    "not-finite",  # no finite pixel in the slice
    "not-a-volume",  # of which a 3D network could say something: one slice, uneven, or gaps
]


class RadprobeError(Exception):
    """The root: catching it catches every error radprobe raises on purpose."""


class ConfigError(RadprobeError, ValueError):
    """A config, a setting or a command line that cannot be used."""


class OccupiedError(RadprobeError, FileExistsError):
    """A path that is to be written holds something else."""


class WeightsError(RadprobeError, ValueError):
    """Weights are missing, belong to another model, or are unsafe to load."""


class UnreadableError(RadprobeError, ValueError):
    """One file or slice cannot be read: `reason` is from a fixed list, `detail` says more."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[UnreadableError], tuple[Reason, str]]:
        """Cross process borders with both fields (the default keeps only the message)."""
        return type(self), (self.reason, self.detail)


class TooManyBadError(RadprobeError, ValueError):
    """More images cannot be read than the run was allowed to meet."""


class LabelError(RadprobeError, ValueError):
    """Labels that do not join the slices, or cannot be split by patient."""


class ModelError(RadprobeError, ValueError):
    """A model's folder is missing, damaged, of another version, or lacks what it is asked for."""


class UnansweredError(LabelError, ConfigError):
    """Some tasks of a config could not be answered; `answers` are those of the others."""

    def __init__(self, message: str, answers: Sequence[Any]) -> None:
        super().__init__(message)
        self.answers = list(answers)

    def __reduce__(self) -> tuple[type[UnansweredError], tuple[str, list[Any]]]:
        """Cross process borders with both fields (the default keeps only the message)."""
        return type(self), (str(self), self.answers)


class DeviceError(RadprobeError, RuntimeError):
    """The device asked for is not there, or too small for the network."""


class ClusterError(RadprobeError, RuntimeError):
    """A cluster cannot be reached, was lost for long, or fails at everything."""


class PartsFailedError(RadprobeError, RuntimeError):
    """Parts could not be embedded; `summary` says what became of all others."""

    def __init__(self, message: str, summary: object = None) -> None:
        super().__init__(message)
        self.summary = summary


class StoreError(RadprobeError):
    """Something about a feature store."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """There is no feature store at the path."""


class RecipeMismatchError(StoreError, ValueError):
    """The store on this path was made by another recipe."""


class UnalignedWriteError(StoreError, ValueError):
    """A write of rows that are not exactly one part."""


class ClaimedError(StoreError, RuntimeError):
    """Another live process is writing the part."""


class StaleTablesError(StoreError, RuntimeError):
    """Another process replaced the tables since they were read: look again."""


class UnwritableError(StoreError, OSError):
    """The disk takes no more: it is full, read-only or not ours."""


class MissingRowsError(StoreError, KeyError):
    """Rows were asked for that hold no features."""

    def __str__(self) -> str:
        """Return the message without the quotes that KeyError puts around it."""
        return str(self.args[0])


class CorruptStoreError(StoreError, ValueError):
    """What is on disk does not fit what its receipt says."""


@contextlib.contextmanager
def as_corrupt(where: str) -> Iterator[None]:
    """Raise CorruptStoreError where what a store has is not of the kind that it must be.

    A file may fit every checksum and be of a stranger: what it holds is no fault of ours.
    """
    try:
        yield
    except RadprobeError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CorruptStoreError(f"{where} is not as a store has it: {error!r}.") from None
    except RecursionError:
        raise CorruptStoreError(f"{where} is not as a store has it: nested too deep.") from None
