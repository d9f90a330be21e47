"""What a process imports, asked of a fork of one that has the libraries (`tests.warm`).

The fork takes them out of `sys.modules`, and each comes back, as it was, once something imports
it: what stands there is what a process of its own would have imported, without the seconds that
takes. What a library imports by itself does not come back along with it: who asks for one asks for
those that bring it too (`WITH_TORCH`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from tests.warm import WarmProcess

WITH_TORCH = frozenset({"torch", "transformers", "peft", "monai"})
LIBRARIES = WITH_TORCH | {
    "SimpleITK",
    "cryptography",
    "distributed",
    "faiss",
    "h5py",
    "highdicom",
    "lifelines",
    "matplotlib",
    "nibabel",
    "pandas",
    "pyarrow.compute",
    "pyarrow.parquet",
    "pydicom",
    "scipy",
    "sklearn",
    "zarr",
}
_FORGETTING = "from tests.fresh import Forgotten; Forgotten.install()\n"


def said(code: str, *arguments: str) -> str:
    """Return what `python -W error -c CODE ARGUMENTS` prints, none of `LIBRARIES` imported before.

    Raises AssertionError, with what it complained, where it fails.
    """
    strictly = "import warnings; warnings.simplefilter('error')\n"
    process = WarmProcess(_FORGETTING + strictly + code, *arguments, environment=os.environ)
    out, complained = process.communicate()
    assert process.returncode == 0, complained
    return out


class Forgotten(MetaPathFinder, Loader):
    """Modules of `LIBRARIES`, out of `sys.modules` until they are imported again."""

    def __init__(self) -> None:
        names = [name for name in sys.modules if _is_of_them(name)]
        self._modules = {name: sys.modules.pop(name) for name in names}

    @classmethod
    def install(cls) -> None:
        """Forget the modules, and give them back to whoever imports them."""
        sys.meta_path.insert(0, cls())

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        module = self._modules.get(name)
        if module is None:
            return None
        return ModuleSpec(name, self, is_package=hasattr(module, "__path__"))

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._modules.pop(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: it has run."""


def _is_of_them(name: str) -> bool:
    return any(name == library or name.startswith(f"{library}.") for library in LIBRARIES)
