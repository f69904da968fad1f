"""What a node says about itself. NVML's answers are scripted, as no GPU is needed to run these."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest
from pydantic import ValidationError

from cyxwiz_tasks.capability import Capability, Gpu
from cyxwiz_tasks.errors import InvalidSettings
from workers import cgroups
from workers.capabilities import detect_capability
from workers.gpus import FakeGpus, NvmlGpus, find_gpus
from workers.labels import parse_labels
from workers.measurements import measured
from workers.share import Share, SharedGpus

GB = 2**30
ROOT = Path(__file__).resolve().parents[2]


def test_declared_gpus_in_groups() -> None:
    gpus = FakeGpus.parse("1x80GB:9.0:H100, 2x24GB:8.9").gpus()
    assert [(gpu.index, gpu.memory_bytes, gpu.compute_capability, gpu.fake) for gpu in gpus] == [
        (0, 80 * GB, "9.0", True),
        (1, 24 * GB, "8.9", True),
        (2, 24 * GB, "8.9", True),
    ]
    assert gpus[0].model == "H100"
    assert len({gpu.uuid for gpu in gpus}) == 3
    assert gpus[1].compute_capability_version == (8, 9)


@pytest.mark.parametrize("text", ["2", "2x24GB", "2xbig:8.9", "0x24GB:8.9", "1x0GB:8.9", "1x24GB:8", "1x24GB:8.9,"])
def test_a_wrong_declaration_shows_the_right_form(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CYXWIZ_FAKE_GPUS", text)
    with pytest.raises(InvalidSettings, match=r'CYXWIZ_FAKE_GPUS: .*such as "2x24GB:8.9"'):
        find_gpus()


def test_a_capability_survives_the_wire(tmp_path: Path) -> None:
    provider = FakeGpus.parse("2x24GB:8.9:RTX-4090")
    labels = {"tier": "gold", "nvme": True, "rack": 4, "price": 0.5}
    node = detect_capability(provider, tmp_path, region="eu-west", labels=labels)
    again = Capability.model_validate_json(node.model_dump_json())
    assert again == node
    assert again.labels == labels
    assert [type(value) for value in again.labels.values()] == [str, bool, int, float]
    assert (again.slots, again.region, again.driver) == (2, "eu-west", None)
    assert again.gpus[1].model == "RTX-4090"


def test_a_newer_node_may_say_more(tmp_path: Path) -> None:
    record = detect_capability(FakeGpus([]), tmp_path).model_dump(mode="json") | {"invented_later": 1}
    assert Capability.model_validate(record).slots == 1


def test_a_gpu_record_is_checked() -> None:
    with pytest.raises(ValidationError, match="compute_capability"):
        Gpu(index=0, uuid="GPU-0", model="X", memory_bytes=GB, compute_capability="sm_89")


def test_the_machine_is_described(tmp_path: Path) -> None:
    node = detect_capability(FakeGpus([]), tmp_path, slots=3)
    assert 1 <= node.cpu_cores <= (os.cpu_count() or 1)
    assert 0 < node.disk_free_bytes <= node.disk_bytes
    assert node.ram_bytes > 2**26
    assert node.hostname
    assert node.cpu_model
    assert node.os_version
    assert node.slots == 3


def test_the_agent_loads_nothing_heavy(tmp_path: Path) -> None:
    code = f"""
import sys, pathlib
from workers.capabilities import detect_capability
from workers.gpus import find_gpus
from workers.measurements import measured
from workers.telemetry import Telemetry
folder = pathlib.Path({str(tmp_path)!r})
provider = find_gpus()
measured(detect_capability(provider, folder), folder)
Telemetry(provider, folder).read()
print(sorted({{"torch", "numpy"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_scores_are_measured_once(tmp_path: Path) -> None:
    node = detect_capability(FakeGpus.parse("1x24GB:8.9"), tmp_path)
    scored = measured(node, tmp_path)
    assert scored.memory_bandwidth_bytes_per_second is not None
    assert scored.memory_bandwidth_bytes_per_second > 1e8
    assert scored.matmul_gflops is not None
    assert scored.matmul_gflops > 0.1
    assert scored.gpus[0].matmul_tflops is None  # a declared GPU has no speed
    assert measured(node, tmp_path) == scored  # two measurements never agree to the last digit
    kept = json.loads((tmp_path / "measurements.json").read_text())
    other_hardware = node.model_copy(update={"cpu_model": "Another CPU"})
    measured(other_hardware, tmp_path)
    assert json.loads((tmp_path / "measurements.json").read_text())["fingerprint"] != kept["fingerprint"]


def test_a_damaged_cache_is_measured_again(tmp_path: Path) -> None:
    (tmp_path / "measurements.json").write_text('{"fingerprint": ')
    assert measured(detect_capability(FakeGpus([]), tmp_path), tmp_path).matmul_gflops is not None


def test_a_node_that_cannot_be_scored_still_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = detect_capability(FakeGpus([]), tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    assert measured(node, tmp_path) == node
    assert not (tmp_path / "measurements.json").exists()


class ScriptedNvml:
    """Answers of a machine with two GPUs; `lost` holds the indices of those that fell off the bus."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lost = set[int]()
        self.uncorrectable = {0: 2, 1: 0}
        answers = {
            "nvmlDeviceGetUUID": lambda index: f"GPU-{index}aaa",
            "nvmlDeviceGetName": lambda index: "NVIDIA GeForce RTX 4090",
            "nvmlDeviceGetCudaComputeCapability": lambda index: (8, 9),
            "nvmlDeviceGetMemoryInfo": lambda index: SimpleNamespace(total=24564 * 2**20, used=3 * GB),
            "nvmlDeviceGetUtilizationRates": lambda index: SimpleNamespace(gpu=87, memory=40),
            "nvmlDeviceGetTemperature": lambda index, sensor: 64,
            "nvmlDeviceGetPowerUsage": lambda index: 312_500,
            "nvmlDeviceGetTotalEccErrors": lambda index, kind, since: self.uncorrectable[index],
        }
        for name, answer in answers.items():
            monkeypatch.setattr(pynvml, name, self._unless_lost(answer))
        monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 2)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
        monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: "570.86.15")
        monkeypatch.setattr(pynvml, "nvmlSystemGetCudaDriverVersion", lambda: 12080)

    def _unless_lost(self, answer):
        def ask(index, *arguments):
            if index in self.lost:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
            return answer(index, *arguments)

        return ask


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> ScriptedNvml:
    return ScriptedNvml(monkeypatch)


def test_nvml_is_read(nvml: ScriptedNvml, tmp_path: Path) -> None:
    node = detect_capability(NvmlGpus(), tmp_path)
    assert (node.driver, node.cuda, node.slots) == ("570.86.15", "12.8", 2)
    gpu = node.gpus[1]
    assert (gpu.index, gpu.uuid, gpu.model) == (1, "GPU-1aaa", "NVIDIA GeForce RTX 4090")
    assert (gpu.memory_bytes, gpu.compute_capability, gpu.fake) == (24564 * 2**20, "8.9", False)


@pytest.mark.parametrize(
    ("visible_devices", "indices"),
    [(None, [0, 1]), ("1", [1]), ("GPU-0aaa", [0]), ("GPU-1,0", [0, 1]), ("", []), ("-1", [])],
)
def test_only_visible_gpus_are_offered(nvml: ScriptedNvml, visible_devices: str | None, indices: list[int]) -> None:
    assert [gpu.index for gpu in NvmlGpus(visible_devices).gpus()] == indices


def test_a_lost_gpu_costs_its_own_readings_and_one_line_each(
    nvml: ScriptedNvml, caplog: pytest.LogCaptureFixture
) -> None:
    provider = NvmlGpus()
    nvml.lost.add(0)
    for _ in range(5):
        lost, well = provider.readings()
    assert lost.model_dump(exclude={"index"}, exclude_none=True) == {}
    assert (well.memory_used_bytes, well.utilization_percent, well.temperature_celsius) == (3 * GB, 87, 64)
    assert well.power_watts == pytest.approx(312.5)
    assert len(caplog.records) == 4
    assert [gpu.index for gpu in provider.gpus()] == [1]


def test_labels_have_types() -> None:
    assert parse_labels(["tier=gold", "nvme=true", "rack=4", "price=0.5", "note=a=b", "tier=silver"]) == {
        "tier": "silver",
        "nvme": True,
        "rack": 4,
        "price": 0.5,
        "note": "a=b",
    }
    for text in ("tier", "=gold", "tier=", "bad name=1"):
        with pytest.raises(InvalidSettings, match="write name=value"):
            parse_labels([text])


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The agent's cgroup folder as a container with limits has it, with a looser limit above it."""
    folder = tmp_path / "outer" / "inner"
    folder.mkdir(parents=True)
    for level, memory, cpu in ((folder.parent, 8 * GB, "max 100000"), (folder, 4 * GB, "150000 100000")):
        (level / "cgroup.procs").touch()
        (level / "memory.max").write_text(f"{memory}\n")
        (level / "cpu.max").write_text(f"{cpu}\n")
    (folder / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    monkeypatch.setattr(cgroups, "_own_folder", lambda controller, _: None if controller else folder)
    return folder


def test_a_containers_limits_count(container: Path) -> None:
    assert cgroups.memory_limit_bytes() == 4 * GB
    assert cgroups.cpu_limit_cores() == pytest.approx(1.5)
    assert cgroups.out_of_memory_kills(container) == 2
    node = detect_capability(FakeGpus([]), container)
    assert node.ram_bytes <= 4 * GB
    assert node.cpu_cores == 1


def test_no_limit_is_no_limit(container: Path) -> None:
    for level in (container, container.parent):
        (level / "memory.max").write_text("max\n")
        (level / "cpu.max").write_text("max 100000\n")
    assert cgroups.memory_limit_bytes() is None
    assert cgroups.cpu_limit_cores() is None


def test_faults_of_a_gpu_are_told_once_and_only_to_whom_it_concerns(nvml: ScriptedNvml) -> None:
    provider = NvmlGpus()
    assert provider.fault([0, 1]) is None, "errors from before this node's start are nobody's"
    nvml.uncorrectable[1] = 3
    assert provider.fault([0]) is None
    assert provider.fault([0, 1]) == "GPU 1: 3 uncorrectable memory errors"
    assert provider.fault([0, 1]) is None
    nvml.lost.add(0)
    assert provider.fault([1]) is None
    assert "lost" in (provider.fault([0]) or "").lower()
    assert SharedGpus(provider, Share(1, 1)).fault([0]) == provider.fault([0])
    assert provider.fault([7]) is None
    assert FakeGpus.parse("1x24GB:8.9").fault([0]) is None
