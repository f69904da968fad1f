"""Every seeded bug still has its place in the source, so that a hunt means something."""

from __future__ import annotations

import pytest

from tests.chaos.mutation_list import MUTATIONS, Mutation
from tests.chaos.mutations import ROOT, seeded


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_bug_can_be_seeded(mutation: Mutation):
    for file in {name for name, _, _ in mutation.edits}:
        source = (ROOT / file).read_text()
        changed = seeded(source, mutation, file)
        assert changed != source
        compile(changed, file, "exec")


def test_there_are_enough_of_them():
    assert len({mutation.name for mutation in MUTATIONS}) >= 15
