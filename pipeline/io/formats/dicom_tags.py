"""DICOM elements whose values labels may be keyed by."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pydicom.datadict import dictionary_VR, keyword_dict
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from stores.errors import ConfigError


def check_tags(keywords: Iterable[str]) -> None:
    """Refuse what is no keyword of the DICOM dictionary, or of no text and no number.

    Raises ConfigError with the nearest keyword.
    """
    for keyword in keywords:
        if keyword not in keyword_dict:
            near = difflib.get_close_matches(keyword, keyword_dict, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else "See DICOM PS3.6, chapter 6."
            raise ConfigError(
                f"data.tags must be DICOM keywords, such as AccessionNumber. Got {keyword!r} "
                f"instead. {hint}"
            )
        vr = dictionary_VR(keyword_dict[keyword])
        if vr.startswith("O") or vr in ("SQ", "UN"):
            raise ConfigError(
                f"data.tags must name texts or numbers. {keyword!r} holds neither (its value "
                f"representation is {vr}); take it out."
            )


def tag_values(dataset: Dataset, keywords: Iterable[str]) -> dict[str, str]:
    r"""Return keyword -> value as text, those that the file has; several are joined by `\`."""
    values = {}
    for keyword in keywords:
        try:
            value = dataset.get(keyword)
        except (ValueError, TypeError, NotImplementedError):
            continue  # a value that contradicts its own type names nothing
        several = value if isinstance(value, MultiValue) else [value]
        texts = [str(one).strip() for one in several if one is not None]
        text = "\\".join(texts)
        if text:
            values[keyword] = text
    return values
