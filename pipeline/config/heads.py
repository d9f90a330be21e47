"""The heads: what learns from cached features, each by its name, and where it is declared.

This is the one list of heads. A name in it is a key of the config, a command of `radprobe`, a
method of `api.evaluate`, of benchmarks and of comparisons, and stands in reports; none of those has
a list of its own. `DEFAULT_HEADS` are those that `radprobe evaluate` answers by. The list is plain
text: whoever reads it imports no head, and asking for a name imports the module of that head alone.

To add a head, say one that predicts the class whose mean is nearest:

1. Write `pipeline/evaluation/heads/nearest_mean.py`. It holds the settings (a `HeadSettings`, which
   becomes the config's key), `fit`, `predict`, and `HEAD`, which declares them together;
   `pipeline.evaluation.heads.contract` says what each takes and gives, and `knn.py` is an example.
   The module is imported wherever a config is read, so that it imports nothing heavy (torch,
   scikit-learn, FAISS, SciPy) at its top. What needs such a library is imported within a function
   (`knn.py`), or stands in a module of its own that `HEAD` names by address (`probe.py` and
   `probe_fit.py`).
2. Add its line to `HEADS`, at the end: reports colour methods by their place.
3. Write `tests/pipeline/evaluation/heads/test_nearest_mean.py`. What every head must do is tried
   for each line of `HEADS` by `test_every_head.py` there.

A head that comes to answer the same question otherwise raises its contract number, so that older
answers are not found.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from pipeline.config.base import HeadSettings
    from pipeline.config.tasks import Kind

LIBRARIES = ("radprobe", "numpy", "scikit-learn", "faiss-cpu", "torch")

S_co = TypeVar("S_co", bound="HeadSettings", covariant=True)


class Registered(NamedTuple):
    """Where a head is declared, and what the command line must know before it imports the head.

    help: of the head's command; on_device: whether the command takes --device.
    """

    module: str
    help: str
    on_device: bool = False


HEADS: dict[str, Registered] = {
    "knn": Registered(
        "pipeline.evaluation.heads.knn",
        "Score each test case by its nearest neighbours among the training cases.",
        on_device=True,
    ),
    "probe": Registered(
        "pipeline.evaluation.heads.probe",
        "Fit a logistic regression on the training cases and score the test cases.",
        on_device=True,
    ),
    "fewshot": Registered(
        "pipeline.evaluation.heads.fewshot",
        "Score nearest centroids of a few patients a class, over many episodes.",
    ),
    "linear": Registered(
        "pipeline.evaluation.heads.linear",
        "Train the paper's grid of linear heads by SGD: blocks, mean token and rates chosen on "
        "val.",
        on_device=True,
    ),
    "attention": Registered(
        "pipeline.evaluation.heads.attention",
        "Train attention over the slices of each series, study or patient, and score it.",
        on_device=True,
    ),
    "efficiency": Registered(
        "pipeline.evaluation.heads.efficiency",
        "Fit the probe on ever more patients, from one a class to all: the label-efficiency curve.",
        on_device=True,
    ),
    "transformer": Registered(
        "pipeline.evaluation.heads.transformer",
        "Train a transformer over the slices of each series, study or patient and where they lie, "
        "and score it.",
        on_device=True,
    ),
    "mlp": Registered(
        "pipeline.evaluation.heads.mlp",
        "Train a perceptron of one hidden layer; val chooses its weight decay and when it ends.",
        on_device=True,
    ),
    "cox": Registered(
        "pipeline.evaluation.heads.cox",
        "Fit Cox's proportional hazards on tasks of survival (time, event); val chooses the "
        "penalty.",
    ),
}
# What `radprobe evaluate` answers by, each where it can be asked; other heads have their own
# command, or are asked by name.
DEFAULT_HEADS: tuple[str, ...] = ("knn", "probe", "fewshot", "cox")
# Not heads, and methods all the same: how a network itself is trained, by `radprobe tune`. One
# module declares them all.
TUNED: tuple[str, ...] = ("finetune", "lora", "bitfit", "norm", "frozen")
TUNED_IN = "pipeline.config.tuning"


@dataclass(frozen=True, kw_only=True)
class Declaration(Generic[S_co]):
    """What is known of a method, a head or a way to tune, before it is run.

    title: what people read; settings: the class of its key in a config; contract: raised whenever
    the method answers the same question otherwise: older answers are then not found. libraries:
    those whose versions an answer names. compared: whether it predicts each test unit once, by a
    model of all of train on cached features, so that its predictions can be held against another's,
    and those of other images too. kinds: of task that it can be asked about.
    """

    name: str
    title: str
    settings: type[S_co]
    contract: int
    libraries: tuple[str, ...] = LIBRARIES
    compared: bool = True
    kinds: tuple[Kind, ...] = ("binary", "multiclass", "multilabel", "regression")


def method_names() -> tuple[str, ...]:
    """Return the names of all methods, the heads first."""
    return (*HEADS, *TUNED)


def declared(name: str) -> Declaration[HeadSettings]:
    """Return the declaration of a method, importing the module it stands in and no other.

    Raises KeyError where there is no such method.
    """
    if name in TUNED:
        declarations: dict[str, Any] = importlib.import_module(TUNED_IN).DECLARED
        tuned: Declaration[HeadSettings] = declarations[name]
        return tuned
    head: Declaration[HeadSettings] = importlib.import_module(HEADS[name].module).HEAD
    return head
