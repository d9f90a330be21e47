"""What is imported is found where a process forgets what it was forked with."""

from __future__ import annotations

from tests.fresh import said


def test_what_is_imported_is_there_and_nothing_else() -> None:
    code = (
        "import sys\n"
        "from tests.fresh import LIBRARIES\n"
        "print(sorted(LIBRARIES & sys.modules.keys()))\n"
        "import torch.nn\n"
        "from scipy import stats\n"
        "print(sorted(LIBRARIES & sys.modules.keys()))\n"
        "print(float(torch.nn.functional.relu(torch.ones(1))), stats.rankdata([3.0])[0])"
    )
    assert said(code).splitlines() == ["[]", "['scipy', 'torch']", "1.0 1.0"]
