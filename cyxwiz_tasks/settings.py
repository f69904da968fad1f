"""Settings, from CYXWIZ_* environment variables and from the file that a running local stack leaves in its home."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from cyxwiz_tasks.broker_url import usable
from cyxwiz_tasks.complaints import reason
from cyxwiz_tasks.errors import InvalidSettings, NoStack


class Settings(BaseSettings):
    """What every part of the project may be told from outside. Times are seconds, sizes are bytes.

    A variable that is empty, as compose files make them of what is not given, is one that is not set.
    """

    model_config = SettingsConfigDict(env_prefix="CYXWIZ_", env_ignore_empty=True, extra="ignore", frozen=True)

    home: Path = Field(default_factory=lambda: Path.home() / ".cyxwiz")
    broker_url: SecretStr | None = None
    database_url: SecretStr | None = None

    #: how long `submit()` waits for the scheduler's commit
    submit_timeout_seconds: float = Field(default=30.0, gt=0)
    #: how long Celery's result backend keeps a state, and Redis a job's log and progress
    result_ttl_seconds: int = Field(default=24 * 3600, gt=0)

    heartbeat_seconds: float = Field(default=0.3, gt=0)
    #: silent for so long: no new work is placed on the node
    suspect_after_seconds: float = Field(default=1.0, gt=0)
    #: silent for so long: its attempts are lost and placed again
    lease_seconds: float = Field(default=15.0, gt=0)
    #: a node that cannot reach the broker trains on for so long: its reports count while nobody took its place
    disconnected_seconds: float = Field(default=900.0, gt=0)

    #: the score's weights, in this order: reputation, availability, capability fit, uptime
    score_weights: Annotated[tuple[float, float, float, float], NoDecode] = (40.0, 30.0, 20.0, 10.0)
    #: for jobs that name none: "spread" over empty nodes, "pack" the fullest that have room, or neither before all else
    placement: Literal["balanced", "spread", "pack"] = "balanced"

    #: who has had how much of the cluster decides whose turn it is: after so long, what was held counts half
    fair_share_half_life_seconds: float = Field(default=24 * 3600.0, gt=0)
    #: for each owner who has none of his own (`cyxwiz limit`): jobs that run, jobs that wait, submissions a minute
    owner_running_limit: int | None = Field(default=None, ge=0)
    owner_waiting_limit: int | None = Field(default=None, ge=0)
    owner_submissions_per_minute: float | None = Field(default=None, gt=0)

    #: a job that gave its place back so often keeps it, even where it is borrowed from another project's quota
    quota_preemptions: int = Field(default=3, ge=0)

    #: where a node keeps checkpoints and artifacts besides its own disk, for attempts on other nodes: an fsspec address
    artifact_store: str | None = None
    #: a job whose checkpoint cannot be fetched from there for so long is tried elsewhere
    fetch_checkpoint_seconds: float = Field(default=60.0, ge=0)
    #: a job's log is cut in the middle beyond this
    log_limit_bytes: int = Field(default=16 * 1024 * 1024, gt=0)
    #: a result above this stays out of the record and out of Redis: write a file into the artifacts instead
    result_limit_bytes: int = Field(default=256 * 1024, gt=0)
    #: how long a job may take to end by itself once it is asked to stop
    stop_grace_seconds: float = Field(default=2.0, ge=0)
    #: the same for a job that gives its place back, and may write a checkpoint first
    preempt_grace_seconds: float = Field(default=20.0, ge=0)
    #: jobs of this priority and above take the place of less urgent ones; "never": none does
    preempt_from: Literal["low", "normal", "high", "critical", "never"] = "critical"
    #: the next in line, if it fits nowhere for so long, gets a place reserved; "inf": none is ever reserved
    reserve_after_seconds: float = Field(default=30.0, ge=0)
    #: a job that gave its place back so often to more urgent ones is left alone from then on
    preempt_limit: int = Field(default=3, ge=0)
    #: a job that gave its place back so often does not move any more for a bigger one that waits; 0: none ever does
    consolidate_limit: int = Field(default=2, ge=0)
    #: no report for the longer of this and `hung_factor` times the job's usual pause between two: it hangs
    hung_floor_seconds: float = Field(default=300.0, gt=0)
    hung_factor: float = Field(default=20.0, ge=1)

    #: faults of a node, without a success in between, that put it into quarantine; then its first one is so long, and
    #: each further one twice as long
    quarantine_faults: int = Field(default=3, ge=1)
    quarantine_seconds: float = Field(default=60.0, gt=0)
    #: crashes of a job, or different nodes lost with it soon after its start, that hold it until a person looks at it
    poison_limit: int = Field(default=3, ge=1)
    #: how long the record keeps jobs that have ended, and nodes that are gone
    retention_days: float = Field(default=90.0, gt=0)
    #: a node removes a job's folder of artifacts and checkpoints in which nothing has changed for so long; None: never
    artifact_retention_days: float | None = Field(default=None, gt=0)

    @property
    def stack_file(self) -> Path:
        """Where `cyxwiz up` leaves the addresses of the stack it runs; readable by its owner alone."""
        return self.home / "stack.json"

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        # A node's jobs are told of it too, and each works in a folder of its own.
        try:
            return home.expanduser().absolute()
        except RuntimeError as error:  # ~somebody who is not known here
            raise ValueError(str(error)) from None

    @field_validator("score_weights", mode="before")
    @classmethod
    def _weights(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        parts = value.strip("[] ").split(",")
        try:
            if len(parts) == len(cls.model_fields["score_weights"].default):
                return tuple(map(float, parts))
        except ValueError:
            pass
        raise ValueError(f"{value!r} is not four numbers: write reputation, availability, fit, uptime: 40,30,20,10")

    def broker(self) -> str:
        """The broker's URL, given or of the stack that runs here.

        Raises NoStack if there is neither, ServerUnavailable if it is one that not all of us could use.
        """
        return usable(self._address(self.broker_url, "broker_url"))

    def database(self) -> str:
        """The database's URL, given or of the stack that runs here.

        Raises NoStack if there is neither.
        """
        return self._address(self.database_url, "database_url")

    def _address(self, given: SecretStr | None, name: str) -> str:
        if given is not None:
            return given.get_secret_value()
        try:
            return str(json.loads(self.stack_file.read_text())[name])
        except (OSError, ValueError, KeyError):
            raise NoStack(
                f"no stack is known in {self.home}: start one with `cyxwiz up`, or set CYXWIZ_{name.upper()}"
            ) from None


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The process's settings, read once.

    Raises InvalidSettings that names the variable and the reason.
    """
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = "CYXWIZ_" + "_".join(str(part) for part in first["loc"]).upper()
        raise InvalidSettings(f"{name}: {reason(first)}. Write another value, or unset it for the usual one") from None
