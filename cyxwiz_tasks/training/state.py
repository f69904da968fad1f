"""All that changes while a job trains, in one object: what a checkpoint saves and a resume restores."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim.lr_scheduler import LRScheduler

from cyxwiz_tasks.training.datasets import Dataset
from cyxwiz_tasks.training.model_fit import check_kind, check_model_fits
from cyxwiz_tasks.training.models import build_model
from cyxwiz_tasks.training.optimizers import build_optimizer, build_schedule, choose_precision
from cyxwiz_tasks.training.reproducibility import generator_states, restore_generators
from cyxwiz_tasks.training_job import TrainingJob


@dataclass
class Best:
    """The epoch with the lowest validation loss. `weights` are kept only where early stopping may go back to them."""

    epoch: int = 0
    loss: float = math.inf
    weights: dict[str, Tensor] | None = None


@dataclass
class TrainingState:
    """Step, position and sums count what is done: `position` is the samples of this epoch's order already used.

    `loss_sum` and `correct` stay on the device, so that no step waits for the GPU.
    """

    model: nn.Module
    forward: Callable[[Tensor], Tensor]
    optimizer: optim.Optimizer
    schedule: LRScheduler
    scaler: torch.amp.GradScaler
    device: torch.device
    total_steps: int
    loss_sum: Tensor
    correct: Tensor
    epoch: int = 0
    step: int = 0
    position: int = 0
    targets_seen: int = 0
    samples_trained: int = 0
    training_seconds: float = 0.0
    best: Best = field(default_factory=Best)
    #: What the last whole epoch reported of loss and accuracy.
    last_epoch: dict[str, float] = field(default_factory=dict)

    @classmethod
    def start(cls, job: TrainingJob, dataset: Dataset, device: torch.device, *, channels_last: bool) -> TrainingState:
        """A fresh state with random weights. Raises InvalidJob when the model does not fit the data."""
        check_kind(job.model, dataset.is_text)
        model = build_model(job.model, job.model_options, dataset.input_shape, dataset.classes).to(device)
        if channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's own stub lacks it
        check_model_fits(job.model, model, dataset, device)
        optimizer = build_optimizer(job, model, device)
        total_steps = steps_in_all(job, len(dataset.train))
        return cls(
            model=model,
            forward=torch.compile(model) if job.compile else model,
            optimizer=optimizer,
            schedule=build_schedule(job, optimizer, total_steps),
            # fp16 alone has too few exponent bits for small gradients.
            scaler=torch.amp.GradScaler(device.type, enabled=choose_precision(job.precision, device) == "fp16"),
            device=device,
            total_steps=total_steps,
            loss_sum=torch.zeros((), dtype=torch.float64, device=device),
            correct=torch.zeros((), dtype=torch.int64, device=device),
        )

    def begin_next_epoch(self) -> None:
        self.epoch += 1
        self.position = 0
        self.targets_seen = 0
        self.loss_sum.zero_()
        self.correct.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Everything as tensors, numbers, text and containers of them: `torch.load(weights_only=True)` reads it."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "generators": generator_states(self.device),
            "loss_sum": self.loss_sum,
            "correct": self.correct,
            "best": (self.best.epoch, self.best.loss, self.best.weights),
            "counters": {name: getattr(self, name) for name in _COUNTERS},
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken."""
        self.model.load_state_dict(saved["model"])
        # A GPU's optimizer is fused and a CPU's is not: what this device has stays.
        fused = self.optimizer.param_groups[0]["fused"]
        groups = [group | {"fused": fused} for group in saved["optimizer"]["param_groups"]]
        self.optimizer.load_state_dict(saved["optimizer"] | {"param_groups": groups})
        _lay_out_as_parameters(self.optimizer)
        self.schedule.load_state_dict(saved["schedule"])
        # Empty where the precision needed none: then this one starts as a new one does.
        if saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])
        restore_generators(saved["generators"], self.device)
        self.loss_sum.copy_(saved["loss_sum"])
        self.correct.copy_(saved["correct"])
        self.best = Best(*saved["best"])
        for name, value in saved["counters"].items():
            setattr(self, name, value)


def _lay_out_as_parameters(optimizer: optim.Optimizer) -> None:
    """Fused kernels want a parameter and its moments in one memory format, and that is the device's own choice."""
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                moments[name] = torch.empty_like(parameter).copy_(value)


_COUNTERS = ("epoch", "step", "position", "targets_seen", "samples_trained", "training_seconds", "last_epoch")


def samples_in_epoch(rows: int, batch_size: int) -> int:
    """All rows, but for a last batch of one: batch norm has no variance there. The order differs, so no row is lost."""
    return rows - 1 if batch_size > 1 and rows > 1 and rows % batch_size == 1 else rows


def steps_in_all(job: TrainingJob, rows: int) -> int:
    """Optimizer steps of the whole job."""
    steps = job.epochs * math.ceil(
        samples_in_epoch(rows, job.batch_size) / (job.batch_size * job.gradient_accumulation)
    )
    return steps if job.max_steps is None else min(steps, job.max_steps)
