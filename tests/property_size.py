"""How much property tests try: little in the suite, and as much as CYXWIZ_TEST_EXAMPLES says in `make property`."""

from __future__ import annotations

import os


def examples(usual: int) -> int:
    """How many examples one property test generates."""
    return int(os.environ.get("CYXWIZ_TEST_EXAMPLES", usual))
