"""What a node can do, as it says when it registers. Part of the contract on the wire: add fields, never change one.

A field that this version does not know is ignored, so newer nodes and older schedulers understand each other.
"""

from pydantic import BaseModel, ConfigDict, Field

from cyxwiz_tasks.quantities import Version, parse_version
from cyxwiz_tasks.resources import LabelValue


class Gpu(BaseModel):
    """One GPU of a node."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    #: NVML's index, which is CUDA's under CUDA_DEVICE_ORDER=PCI_BUS_ID. It may change at a restart; `uuid` does not.
    index: int = Field(ge=0)
    #: what to put into CUDA_VISIBLE_DEVICES, such as "GPU-5f0e..."
    uuid: str
    model: str
    memory_bytes: int = Field(gt=0)
    #: such as "8.9"; `compute_capability_version` is made for comparing
    compute_capability: str = Field(pattern=r"^\d+\.\d+$")
    driver: str | None = None
    #: the newest CUDA version that the driver supports, such as "12.8"
    cuda: str | None = None
    #: declared by CYXWIZ_FAKE_GPUS: the scheduler places by it, the job runs on the CPU
    fake: bool = False
    #: multiplication of two dense 4096 x 4096 float16 matrices, 10^12 operations per second
    matmul_tflops: float | None = Field(default=None, ge=0)
    #: copy inside the GPU's memory, reads plus writes
    memory_bandwidth_bytes_per_second: float | None = Field(default=None, ge=0)

    @property
    def compute_capability_version(self) -> Version:
        """(8, 9) of "8.9"."""
        return parse_version(self.compute_capability)


class Capability(BaseModel):
    """One node. Sizes are bytes; what could not be found out is None."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    hostname: str
    #: such as "Linux", "Darwin"
    os: str
    #: such as "Debian GNU/Linux 12 (bookworm)"
    os_version: str
    #: such as "x86_64", "aarch64"
    architecture: str
    python: str
    #: version of this project
    cyxwiz: str
    cpu_model: str
    #: cores that the node's processes may use: affinity and cgroup quota count
    cpu_cores: int = Field(ge=1)
    #: memory that the node's processes may use: a cgroup's limit counts
    ram_bytes: int = Field(gt=0)
    #: size of, and free space on, the disk with the node's folder
    disk_bytes: int = Field(ge=0)
    disk_free_bytes: int = Field(ge=0)
    #: version of the installed torch, such as "2.13.0+cpu"
    torch: str | None = None
    #: the newest CUDA version that the driver supports
    cuda: str | None = None
    driver: str | None = None
    region: str | None = None
    #: the address under which other nodes reach it: that from which it reaches the broker, or what it was started with
    address: str | None = None
    #: speed of the link behind that address, as its driver says
    network_bytes_per_second: float | None = Field(default=None, ge=0)
    labels: dict[str, LabelValue] = Field(default_factory=dict)
    #: nodes that name the same place find each other's checkpoints; None: no other node finds them
    checkpoint_place: str | None = None
    #: whose jobs it takes, as `Condition` reads it; None: everybody's
    accept: str | None = None
    #: when it takes new work, as `OpeningHours` reads it, and in whose time; None: always
    hours: str | None = None
    timezone: str | None = None
    gpus: list[Gpu] = Field(default_factory=list)
    #: how many jobs it runs at a time
    slots: int = Field(default=1, ge=1)
    #: copy of 64 MB in main memory by one thread, reads plus writes
    memory_bandwidth_bytes_per_second: float | None = Field(default=None, ge=0)
    #: multiplication of two dense 512 x 512 float32 matrices on all cores of the node, 10^9 operations per second
    matmul_gflops: float | None = Field(default=None, ge=0)
