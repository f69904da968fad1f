"""Several nodes on one machine divide it and overlap nowhere."""

from __future__ import annotations

import pytest

from cyxwiz_tasks.errors import InvalidSettings
from workers.capabilities import detect_capability
from workers.gpus import FakeGpus
from workers.share import Share, SharedGpus


def test_the_shares_of_a_machine_are_disjoint_and_whole():
    machine = FakeGpus.parse("5x24GB:8.9")
    parts = [[gpu.index for gpu in SharedGpus(machine, Share(number, 2)).gpus()] for number in (1, 2)]
    assert parts == [[0, 2, 4], [1, 3]]


def test_cores_and_memory_are_divided(tmp_path):
    whole = detect_capability(FakeGpus.parse("1x24GB:8.9"), tmp_path)
    half = Share(1, 2).of_capability(whole)
    assert half.ram_bytes == whole.ram_bytes // 2
    assert half.cpu_cores == max(1, whole.cpu_cores // 2)


@pytest.mark.parametrize("text", ["", "2", "0/2", "3/2", "a/b"])
def test_a_wrong_share_is_refused_with_the_form(text):
    with pytest.raises(InvalidSettings, match="1/2"):
        Share.parse(text)
