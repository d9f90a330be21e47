"""What a model says of a unit as a DICOM structured report: TID 1500, a measurement group.

It names the patient and study of its images, as PACS want it, and is never stored by radprobe.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import highdicom as hd
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from pipeline.fitted.record import ModelRecord
from pipeline.report.wording import RANDOM
from pipeline.segmentation.dicom_writer import complete, new_series
from pipeline.shared.versions import version_of

# Of names that are the user's own: DICOM keeps schemes that begin with 99 for private codes.
SCHEME = "99RADPROBE"
# Letters of a code's meaning, at most (PS3.5, LO).
_MOST = 64


def report_of(
    record: ModelRecord, row: Mapping[str, Any], images: Sequence[Dataset]
) -> hd.sr.Comprehensive3DSR:
    """Return the report of one unit.

    row: what the table of predictions says of it; images: the headers of its files, which gain,
    empty, the elements that a report must take over and that they lack. Patient and study are
    theirs.
    """
    for image in images:
        complete(image)
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=generate_uid(), identifier=record.task),
        algorithm_id=hd.sr.AlgorithmIdentification(
            name="radprobe",
            version=version_of("radprobe"),
            parameters=list(_parameters(record)),
        ),
        measurements=list(_measurements(record, row)),
        qualitative_evaluations=list(_evaluations(record, row)),
        source_images=[
            hd.sr.SourceImageForMeasurementGroup(image.SOPClassUID, image.SOPInstanceUID)
            for image in images
        ],
    )
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=_observer(record)),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=[group],
    )
    return hd.sr.Comprehensive3DSR(
        evidence=list(images),
        content=content[0],
        **new_series(),
        is_complete=True,
        is_verified=False,  # nobody has looked at it
    )


def _observer(record: ModelRecord) -> hd.sr.ObserverContext:
    """Return who says it: the model, known by the key of its answer."""
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=["radprobe model", record.provenance.key]),
        name="radprobe",
        manufacturer_name="radprobe",
        model_name=_short(record.task),
        serial_number=record.provenance.key[:16],
    )
    return hd.sr.ObserverContext(codes.DCM.Device, device)


def _parameters(record: ModelRecord) -> Sequence[str]:
    network = record.recipe.network
    about = [f"method {record.method}", f"network {network}", f"answer {record.provenance.key}"]
    return [RANDOM, *about] if record.random else about


def _measurements(record: ModelRecord, row: Mapping[str, Any]) -> Sequence[Any]:
    """Return the numbers of a row that are there, each with its name."""
    names = {}
    if record.kind == "regression":
        names["value"] = record.classes[0]
    if record.kind == "survival":
        names["risk"] = f"Log hazard of {record.classes[0]}"
    for name in record.classes:
        names[f"proba:{name}"] = f"Probability of {name}"
        names[f"calibrated:{name}"] = f"Calibrated probability of {name}"
    for name, threshold in record.thresholds.items():
        names[f"threshold:{name}"] = f"Operating point of {name}"
        row = {**row, f"threshold:{name}": threshold}
    names["unlike_p"] = "Conformal p-value of being like the training images"
    measurements = []
    for column, name in names.items():
        value = row.get(column)
        if value is not None and not math.isnan(value):
            code = _code(column, name)
            measurements.append(hd.sr.Measurement(code, float(value), codes.UCUM.NoUnits))
    return measurements


def _evaluations(record: ModelRecord, row: Mapping[str, Any]) -> Sequence[Any]:
    """Return what was decided, and what must be known beside it."""
    evaluations = []
    decided = row.get("decision")
    if decided is not None:
        what = _code("decision", f"Decision on {record.task}")
        answer = _code(f"class:{decided}", decided or "none")
        evaluations.append(hd.sr.QualitativeEvaluation(what, answer))
    for note in filter(None, row["notes"].split("; ")):
        what = _code("note", "Note")
        evaluations.append(hd.sr.QualitativeEvaluation(what, _code(f"note:{note}", note)))
    return evaluations


def _code(key: str, meaning: str) -> hd.sr.CodedConcept:
    """Return a private code, the same for the same key."""
    value = hashlib.sha256(key.encode()).hexdigest()[:16]
    return hd.sr.CodedConcept(value, SCHEME, _short(meaning))


def _short(text: str) -> str:
    """Return a text as DICOM takes it in a line: of 64 letters, without its separators."""
    plain = text.replace("\\", "/")
    return plain if len(plain) <= _MOST else plain[: _MOST - 1] + "…"
