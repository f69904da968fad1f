"""Resources: what a job needs of the node that runs it."""

from __future__ import annotations

import math
from functools import cached_property, lru_cache
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cyxwiz_tasks import preferences
from cyxwiz_tasks.complaints import reason
from cyxwiz_tasks.errors import InvalidJob
from cyxwiz_tasks.quantities import SizeRange, VersionBounds, name_pattern

LabelValue = str | int | float | bool
#: "spread": to the emptiest node; "pack": to the fullest that has room; "balanced": neither comes before all else
PlacementPolicy = Literal["balanced", "spread", "pack"]

#: A card sold as 24 GB reports 22.5 to 24 GiB (a part of it holds error-correcting codes), a machine sold with 16 GB
#: of memory 15.5: lower bounds on both are met at this share of what was asked.
NOMINAL_SHARE = 0.93

#: each member of a gang is told of all others
MOST_NODES = 256
_EXAMPLES = {
    "gpus": "gpus=1",
    "cpus": "cpus=8",
    "nodes": "nodes=2",
    "gpu_model": 'gpu_model="A100|H100*"',
    "os": 'os="Debian*"',
    "region": 'region="eu-*"',
    "labels": 'labels={"rack": "b2"}',
    "node": 'node="gpu-1"',
    "exclude_nodes": 'exclude_nodes=("gpu-3",)',
}
_GPU_FIELDS = ("gpu_memory", "gpu_model", "compute_capability", "shared")


def nominal(size_bytes: int) -> int:
    """What a lower bound of `size_bytes` really asks for: see NOMINAL_SHARE."""
    return math.ceil(size_bytes * NOMINAL_SHARE)


class Resources(BaseModel):
    """Requirements on a node, or on each of `nodes`. Every field that is set must hold; an unset one asks for nothing.

    Sizes are texts such as "24GB..80GB", versions such as ">=8.0", names patterns such as "A100|H100*".
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: different nodes that the job runs on at the same time, a gang: each gives all that the other fields say
    nodes: int = Field(default=1, ge=1, le=MOST_NODES)
    #: GPUs that the job gets for itself; asking for anything of a GPU asks for one
    gpus: int = Field(default=0, ge=0, le=1024)
    #: memory of each of these GPUs
    gpu_memory: str | None = None
    gpu_model: str | None = None
    compute_capability: str | None = None
    #: share a GPU with other jobs: takes the lower end of `gpu_memory` on it and leaves the rest
    shared: bool = False
    #: CUDA version that the node's driver supports, and the driver's own version
    cuda: str | None = None
    driver: str | None = None
    #: CPU cores and memory that the job takes out of the node's while it runs
    cpus: int = Field(default=0, ge=0, le=65536)
    ram: str | None = None
    #: free disk space in the node's folder
    disk: str | None = None
    #: "cuda" or "cpu": the kind of device that the job computes on
    device: Literal["cuda", "cpu"] | None = None
    torch: str | None = None
    os: str | None = None
    region: str | None = None
    #: labels that a node was started with; text values are patterns
    labels: dict[str, LabelValue] = Field(default_factory=dict)
    #: names or ids of nodes
    node: str | None = None
    exclude_nodes: tuple[str, ...] = ()
    #: what a node need not meet but had better, "field=value", and how much each of these weighs beside the others
    prefer: dict[str, float] = Field(default_factory=dict)
    #: None: CYXWIZ_PLACEMENT of the scheduler
    placement: PlacementPolicy | None = None

    @field_validator("gpu_memory", "ram", "disk", mode="before")
    @classmethod
    def _size(cls, value: Any) -> Any:
        if value is None:
            return None
        SizeRange.parse(str(value))
        return str(value)

    @field_validator("compute_capability", "cuda", "driver", "torch", mode="before")
    @classmethod
    def _version(cls, value: Any) -> Any:
        if value is None:
            return None
        VersionBounds.parse(str(value))
        return str(value)

    @field_validator("gpu_model", "os", "region", "node")
    @classmethod
    def _pattern(cls, value: str | None) -> str | None:
        if value is not None:
            name_pattern(value)
        return value

    @field_validator("labels")
    @classmethod
    def _numbers_are_finite(cls, value: dict[str, LabelValue]) -> dict[str, LabelValue]:
        """A shape is JSON, which has no others: a scheduler could not read it out of the record again."""
        for name, wanted in value.items():
            if isinstance(wanted, float) and not math.isfinite(wanted):
                raise ValueError(f'the value of "{name}" is {wanted}: write a finite number, or a text')
        return value

    @field_validator("labels", "prefer")
    @classmethod
    def _in_order(cls, value: dict[str, Any]) -> dict[str, Any]:
        """The same whatever the order in which they were written, so that there is one shape."""
        return dict(sorted(value.items()))

    @field_validator("exclude_nodes")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(value)))

    @field_validator("prefer", mode="before")
    @classmethod
    def _preferences(cls, value: Any) -> Any:
        found = preferences.checked(value)
        for text in found:
            try:
                cls.model_validate(preferences.as_requirement(text))
            except ValidationError as error:
                reason = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise ValueError(f'"{text}": {reason}') from None
        return found

    @model_validator(mode="before")
    @classmethod
    def _any_wish_for_a_gpu_asks_for_one(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("gpus"):
            wished = [name for name in _GPU_FIELDS if data.get(name)]
            if "gpus" in data and data["gpus"] == 0 and wished:
                return data  # `_consistent` refuses it
            if wished or data.get("device") == "cuda":
                return data | {"gpus": 1}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Resources:
        wished = [name for name in _GPU_FIELDS if getattr(self, name)]
        if wished and not self.gpus:
            raise ValueError(f"gpus=0 and {wished[0]} contradict each other: leave one of them out")
        if self.device == "cpu" and self.gpus:
            raise ValueError('device="cpu" and a GPU contradict each other: leave one of them out')
        if self.shared and self.gpu_memory is None:
            raise ValueError('shared=True needs gpu_memory, such as "6GB": it is what the job takes of the GPU')
        of_gpu = [text for text in self.prefer if preferences.split(text)[0] in preferences.GPU_FIELDS]
        if of_gpu and not self.gpus:
            raise ValueError(f'prefer: "{of_gpu[0]}" speaks of a GPU, and the job asks for none: set gpus=1')
        return self

    @classmethod
    def parse(cls, value: Resources | dict[str, Any] | None) -> Resources:
        """Resources out of what a user wrote.

        Raises InvalidJob that names the field and what to write.
        """
        if isinstance(value, Resources):
            return value
        try:
            return cls.model_validate(value or {})
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(["resources", *(str(part) for part in first["loc"])])
            if first["type"] == "extra_forbidden":
                known = ", ".join(cls.model_fields)
                raise InvalidJob(field, "there is no such requirement", f"Known are {known}") from None
            example = _EXAMPLES.get(str(first["loc"][0])) if first["loc"] else None
            is_own = "error" in first.get("ctx", {})
            hint = f"Write for example {example}" if example and not is_own else ""
            raise InvalidJob(field, reason(first), hint) from None

    @cached_property
    def shape(self) -> str:
        """Equal for jobs that fit exactly the same nodes: one text in canonical form."""
        return self.model_dump_json(exclude_defaults=True)

    @classmethod
    @lru_cache(maxsize=4096)
    def of_shape(cls, shape: str) -> Self:
        """The resources with this shape: one object for all that ask."""
        return cls.model_validate_json(shape)

    @property
    def gpu_memory_bytes(self) -> SizeRange:
        return SizeRange.parse(self.gpu_memory or 0)

    @property
    def gpu_share_bytes(self) -> int | None:
        """What the job may take of each GPU that it shares; None: as much as there is."""
        if not self.shared:
            return None
        least_bytes = self.gpu_memory_bytes.min_bytes
        return nominal(least_bytes) if least_bytes else None

    @property
    def ram_bytes(self) -> SizeRange:
        return SizeRange.parse(self.ram or 0)

    @property
    def disk_bytes(self) -> SizeRange:
        return SizeRange.parse(self.disk or 0)
