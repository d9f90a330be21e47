"""HDF5 files that hold their own data: what leads to another file is refused, and never followed.

External links, external storage and virtual datasets name any file of this machine, whose content
would come out as features or pictures.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from stores.errors import UnreadableError

# Soft links that lead to each other, at the most.
_MOST_LINKS = 16
_ELSEWHERE = "it leads to another file"


def member_there(file: Any, name: str) -> Any:
    """Return what `member` does; raises UnreadableError where nothing is there as well."""
    item = member(file, name)
    if item is None:
        raise UnreadableError("corrupt", f"it holds no {name!r}")
    return item


def member(file: Any, name: str) -> Any | None:
    """Return the group or dataset at a path of an open HDF5 file; None where nothing is there.

    Raises UnreadableError where a link on the way leads out of the file, or into a circle, and
    where a dataset has its values elsewhere.
    """
    import h5py

    item = file
    steps = deque(name.split("/"))
    links = 0
    while steps:
        step = steps.popleft()
        if not step:
            continue
        # The link and not what it leads to: to look at that would be to open it.
        link = item.get(step, getlink=True) if isinstance(item, h5py.Group) else None
        match link:
            case None:
                return None
            case h5py.HardLink():
                item = item[step]
            case h5py.SoftLink():
                links += 1
                if links > _MOST_LINKS:
                    raise UnreadableError("unsupported", f"{name!r} is a link without an end")
                # Step by step, as each part of its path may be a link again.
                if link.path.startswith("/"):
                    item = file
                steps.extendleft(reversed(link.path.split("/")))
            case _:
                raise UnreadableError("unsupported", f"{name!r} is a link: {_ELSEWHERE}")
    if isinstance(item, h5py.Dataset):
        check_values(item)
    return item


def check_values(dataset: Any) -> None:
    """Raise UnreadableError where the values of a dataset lie in another file."""
    if dataset.is_virtual or dataset.external:
        raise UnreadableError("unsupported", "the array lies in another file")
