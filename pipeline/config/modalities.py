"""The modality codes of DICOM (PS3.3 C.7.3.1.1.1), retired ones too."""

from __future__ import annotations

import difflib

_LISTED = (
    "ANN AR ASMT AU BDUS BI BMD CFM CR CT CTPROTOCOL DG DMS DOC DX ECG EEG EMG EOG EPS ES FID GM HC"
    " HD IO IOL IVOCT IVUS KER KO LEN LP LS M3D MG MR NM OAM OCT OP OPM OPT OPTBSV OPTENF OPV OSS"
    " OT PA PLAN POS PR PT PX REG RESP RF RG RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN"
    " RTSTRUCT RWV SEG SM SMR SR SRF STAIN TEXTUREMAP TG US VA XA XAPROTOCOL XC XRF"
    " AS CD CF CP CS DD DF DM DR DS EC FA FS MA MS OPR ST VF"
)
_CODES = frozenset(_LISTED.split())
# What people say, where it is far from the code.
_SPOKEN = {
    "CBCT": "CT",
    "CTA": "CT",
    "CXR": "DX",
    "XR": "DX",
    "XRAY": "DX",
    "X-RAY": "DX",
    "RADIOGRAPH": "DX",
    "MRI": "MR",
    "MRT": "MR",
    "FLAIR": "MR",
    "T1": "MR",
    "T2": "MR",
    "MAMMO": "MG",
    "MAMMOGRAPHY": "MG",
    "PET": "PT",
    "ULTRASOUND": "US",
    "OTHER": "OT",
}


def modality_code(word: str) -> str:
    """Return the code that a word is, whatever its case. Raises ValueError with the nearest one."""
    code = word.strip().upper()
    if code in _CODES:
        return code
    near = [_SPOKEN[code]] if code in _SPOKEN else difflib.get_close_matches(code, _CODES, n=1)
    hint = (
        f"Did you mean {near[0]!r}?" if near else "X-rays are DX, CT is CT, MRI is MR, others OT."
    )
    raise ValueError(f"{word!r} is no modality code of DICOM (PS3.3 C.7.3.1.1.1). {hint}")
