"""A config over a BIDS folder: what the folder's names say is filled in as ordinary settings.

Nothing else of radprobe asks whether a collection is one of BIDS.
"""

from __future__ import annotations

from pipeline.config.data import Labels
from pipeline.config.root import Config
from pipeline.shared.bids import EXCLUDED, MODALITIES, SESSION, SUBJECT, is_dataset


def with_bids(config: Config) -> Config:
    """Return a config whose data.root, or each of its named roots, is a BIDS folder, filled in.

    The subject is the patient, and the session the study; derivatives and masks are no images, the
    modality is that of the kind of data, and labels are the folder's own tables. What the config
    says itself stands. Any other config is returned as it is.
    """
    data = config.data
    roots = [*data.roots.values()] or [data.root]
    if config.demo is not None or not all(map(is_dataset, roots)):
        return config
    meant = " ".join(data.include)
    excluded = [glob for word, glob in EXCLUDED.items() if word not in meant]
    filled = data.model_copy(
        update={
            "patient": data.patient or SUBJECT,
            "study": data.study or SESSION,
            "exclude": tuple(dict.fromkeys([*data.exclude, *excluded])),
            # The first glob that matches wins: the config's own.
            "modality": {**data.modality, **MODALITIES, **data.modality},
        }
    )
    labels = config.labels or Labels(file=data.root)
    return config.model_copy(update={"data": filled, "labels": labels})
