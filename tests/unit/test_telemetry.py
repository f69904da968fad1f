"""A reading of the node: quick, and never an exception."""

import time
from pathlib import Path

import pytest

from cyxwiz_tasks.telemetry import GpuReading, NodeReading
from workers.gpus import FakeGpus
from workers.telemetry import Telemetry


class BrokenGpus(FakeGpus):
    """A driver that throws what nobody expects."""

    def readings(self) -> list[GpuReading]:
        raise RuntimeError("driver/library version mismatch")


def test_a_reading_is_complete_and_survives_the_wire(tmp_path: Path) -> None:
    reading = Telemetry(FakeGpus.parse("2x24GB:8.9"), tmp_path).read()
    assert reading.ram_used_bytes is not None
    assert reading.ram_used_bytes > 2**20
    assert reading.disk_free_bytes is not None
    assert reading.cpu_percent is not None
    assert reading.load_1m is not None
    assert [gpu.index for gpu in reading.gpus] == [0, 1]
    assert NodeReading.model_validate_json(reading.model_dump_json()) == reading


def test_a_reading_is_cheap(tmp_path: Path) -> None:
    telemetry = Telemetry(FakeGpus.parse("8x80GB:9.0"), tmp_path)
    seconds = []
    for _ in range(20):
        began = time.perf_counter()
        telemetry.read()
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.005


def test_what_fails_is_none_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    telemetry = Telemetry(BrokenGpus([]), tmp_path / "removed")
    for _ in range(3):
        reading = telemetry.read()
    assert reading.disk_free_bytes is None
    assert reading.gpus == []
    assert reading.ram_used_bytes is not None
    assert len(caplog.records) == 2


def test_cpu_use_is_of_the_time_between_readings(tmp_path: Path) -> None:
    telemetry = Telemetry(FakeGpus([]), tmp_path)
    telemetry.read()
    deadline = time.monotonic() + 5
    busy = 0
    while True:
        busy = sum(range(200_000))
        reading = telemetry.read()
        if reading.cpu_percent:
            break
        assert time.monotonic() < deadline
    assert busy
    assert 0 < reading.cpu_percent <= 100
