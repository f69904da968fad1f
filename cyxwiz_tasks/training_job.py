"""TrainingJob: what to train, on what, and how. Importable without torch; docs/training.md is the reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cyxwiz_tasks.complaints import reason
from cyxwiz_tasks.errors import InvalidJob
from cyxwiz_tasks.training.names import check_dataset, check_model, did_you_mean

#: The forms in which an option travels: what JSON can carry.
Options = Mapping[str, Any]

_EXAMPLES = {
    "model": 'model="cnn"',
    "dataset": 'dataset="digits"',
    "epochs": "epochs=5",
    "batch_size": "batch_size=32",
    "learning_rate": "learning_rate=0.001",
    "validation_split": "validation_split=0.1",
    "warmup": "warmup=0.1, the share of all steps",
    "clip_norm": "clip_norm=1.0",
    "max_steps": "max_steps=1000",
    "checkpoint_steps": "checkpoint_steps=500",
    "checkpoint_seconds": "checkpoint_seconds=60",
    "model_options": 'model_options={"hidden": [128, 64]}',
    "dataset_options": 'dataset_options={"label": "species"}',
}


class TrainingJob(BaseModel):
    """One training: model, data set and every knob of the loop.

    Raises InvalidJob, with one sentence that names the field, when a field is unknown or its value cannot be used.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    #: "mlp", "cnn", "resnet18", "transformer", or "package.module:factory".
    model: str
    #: "digits", "mnist", "fashion-mnist", "synthetic://...", or the address of a file.
    dataset: str
    epochs: Annotated[int, Field(gt=0)] = 1
    #: Samples in one forward pass; an optimizer step sees `batch_size * gradient_accumulation` of them.
    batch_size: Annotated[int, Field(gt=0)] = 32
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    #: Of "sgd" only.
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    #: None is 0.01 for "adamw", 0 for the others.
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    schedule: Literal["constant", "cosine", "onecycle"] = "constant"
    #: The share of all steps in which the learning rate rises; None is 0.3 for "onecycle", 0 for the others.
    warmup: Annotated[float, Field(ge=0, lt=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    deterministic: bool = False
    #: None is "bf16" on a GPU that has it, "fp16" on an older GPU, "fp32" on a CPU.
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    #: None is True for images on a GPU, False on a CPU.
    channels_last: bool | None = None
    compile: bool = False
    gradient_accumulation: Annotated[int, Field(gt=0)] = 1
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    #: The share of the training rows that is held out. A data set without a test part is judged on these at the end.
    validation_split: Annotated[float, Field(ge=0, lt=1)] = 0.1
    #: Stop after so many epochs without a lower validation loss, and keep the best weights.
    early_stopping_patience: Annotated[int, Field(gt=0)] | None = None
    model_options: Options = Field(default_factory=dict)
    dataset_options: Options = Field(default_factory=dict)
    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    #: Stop after so many optimizer steps, over all epochs.
    max_steps: Annotated[int, Field(gt=0)] | None = None
    #: Save so many optimizer steps after the last checkpoint.
    checkpoint_steps: Annotated[int, Field(gt=0)] | None = None
    #: Save so many seconds after the last checkpoint. None without `checkpoint_steps` is 60, or more where saving
    #: would take over 0.5 % of the time.
    checkpoint_seconds: Annotated[float, Field(ge=0)] | None = None
    #: The least time between two reports of steps; epochs are always reported. Reading the loss waits for the GPU.
    report_every_seconds: Annotated[float, Field(ge=0)] = 0.1

    if not TYPE_CHECKING:  # so that editors and mypy keep the fields' own signature

        def __init__(self, **fields: Any) -> None:
            try:
                super().__init__(**fields)
            except ValidationError as error:
                raise invalid_job(error) from None

    @field_validator("model")
    @classmethod
    def _model_is_known(cls, name: str) -> str:
        check_model(name)
        return name

    @field_validator("dataset")
    @classmethod
    def _dataset_is_known(cls, name: str) -> str:
        check_dataset(name)
        return name

    @model_validator(mode="after")
    def _early_stopping_has_something_to_watch(self) -> Self:
        if self.early_stopping_patience is not None and self.validation_split == 0:
            raise InvalidJob("early_stopping_patience", "needs held-out rows", "Write validation_split=0.1")
        return self


def invalid_job(error: ValidationError) -> InvalidJob:
    """The first of pydantic's complaints about a TrainingJob as one sentence: field, what is wrong, what to write."""
    details = error.errors(include_url=False)[0]
    cause = details.get("ctx", {}).get("error")
    if isinstance(cause, InvalidJob):
        return cause
    field = ".".join(str(part) for part in details["loc"]) or "job"
    if details["type"] == "extra_forbidden":
        return InvalidJob(field, f"is no field of a TrainingJob{did_you_mean(field, TrainingJob.model_fields)}")
    if cause is not None:
        return InvalidJob(field, str(cause))
    example = _EXAMPLES.get(field)
    return InvalidJob(field, reason(details), f"Write for example {example}" if example else "")
