"""What several models, each tested on its own fold, say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.questions import Prediction


@dataclass(frozen=True)
class Tested:
    """Predictions of the units `rows` (q,), and the fold (q,) of each where there are several."""

    predictions: list[Prediction]
    rows: NDArray[np.int64]
    fold: NDArray[np.int64] | None
    notes: list[str]


def together(
    answers: Sequence[tuple[list[Prediction], list[str]]], tests: Sequence[NDArray[np.int64]]
) -> Tested:
    """Join the predictions and notes of each turn, which tested the units `tests`.

    Predictions belong together where they are of one setting. Where each turn made one, by a
    setting it chose itself, they do too, and a note says what was chosen.
    """
    if len(answers) == 1:
        return Tested(answers[0][0], tests[0], None, answers[0][1])
    notes = [f"fold {i}: {note}" for i, (_, said) in enumerate(answers) for note in said]
    made = [predictions for predictions, _ in answers]
    if all(len(own) == 1 for own in made) and any(p.setting != made[0][0].setting for (p,) in made):
        chosen = [f"{k} = {v:.3g}" for own in made for k, v in own[0].setting.items()]
        notes.append(f"chosen by fold: {', '.join(chosen)}")
        joined = [_join({}, [own[0] for own in made])]
    else:
        by_setting = [{tuple(p.setting.items()): p for p in own} for own in made]
        shared = [s for s in by_setting[0] if all(s in own for own in by_setting)]
        joined = [_join(dict(s), [own[s] for own in by_setting]) for s in shared]
    fold = np.repeat(np.arange(len(tests)), [len(test) for test in tests])
    return Tested(joined, np.concatenate(tests), fold, notes)


def _join(setting: dict[str, float], each: Sequence[Prediction]) -> Prediction:
    return Prediction(setting, np.concatenate([p.proba for p in each]))
