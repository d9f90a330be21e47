"""DICOM datasets without preamble and signature, told by how their first element looks."""

from __future__ import annotations

from typing import Literal

# Value representations, PS3.5 section 6.2.
_VRS = frozenset(
    b"AE AS AT CS DA DS DT FL FD IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR"
    b" US UT UV".split()
)
_BYTE_ORDERS: tuple[Literal["little", "big"], ...] = ("little", "big")
# Groups that a dataset begins with: file meta information, or identification.
_FIRST_GROUPS = (0x0002, 0x0008)


def is_bare_dicom(start: bytes) -> bool:
    """Return whether bytes begin like a DICOM dataset without preamble: a low group, then sense."""
    if len(start) < 16:
        return False
    return any(_has_first_element(start, order) for order in _BYTE_ORDERS)


def _has_first_element(start: bytes, order: Literal["little", "big"]) -> bool:
    group = int.from_bytes(start[:2], order)
    element = int.from_bytes(start[2:4], order)
    if group not in _FIRST_GROUPS or element > 0x3000:
        return False
    if start[4:6] in _VRS:
        return True
    # Without a VR the length follows: of a first element it is short, and even as all are.
    length = int.from_bytes(start[4:8], order)
    return length <= 256 and length % 2 == 0
