"""How busy a node is: one reading, as its heartbeat carries it. Part of the contract on the wire."""

from pydantic import BaseModel, ConfigDict, Field


class GpuReading(BaseModel):
    """One GPU now. None: this GPU does not tell, or no longer answers."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    index: int
    memory_used_bytes: int | None = None
    #: share of the last moments in which a kernel ran
    utilization_percent: float | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None


class NodeReading(BaseModel):
    """One node now. None: could not be read."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    #: of all cores, since the reading before
    cpu_percent: float | None = None
    ram_used_bytes: int | None = None
    disk_free_bytes: int | None = None
    #: processes that ran or wanted to, averaged over a minute
    load_1m: float | None = None
    gpus: list[GpuReading] = Field(default_factory=list)
