"""Optimizer, learning-rate schedule and number format of a TrainingJob."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn, optim
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from cyxwiz_tasks.training_job import TrainingJob

_ADAMW_WEIGHT_DECAY = 0.01
#: torch's own default for OneCycleLR.
_ONECYCLE_WARMUP = 0.3

Precision = Literal["fp32", "bf16", "fp16"]


def build_optimizer(job: TrainingJob, model: nn.Module, device: torch.device) -> optim.Optimizer:
    """The optimizer over all parameters; on a GPU the fused kernel, one launch for all tensors."""
    decay = job.weight_decay
    fused = device.type == "cuda"
    if job.optimizer == "sgd":
        # torch's fused SGD leaves its first momentum as the memory was found where fp16 overflows in the first step.
        fused = fused and choose_precision(job.precision, device) != "fp16"
        return optim.SGD(
            model.parameters(), lr=job.learning_rate, momentum=job.momentum, weight_decay=decay or 0.0, fused=fused
        )
    if job.optimizer == "adam":
        return optim.Adam(model.parameters(), lr=job.learning_rate, weight_decay=decay or 0.0, fused=fused)
    decay = _ADAMW_WEIGHT_DECAY if decay is None else decay
    return optim.AdamW(model.parameters(), lr=job.learning_rate, weight_decay=decay, fused=fused)


def build_schedule(job: TrainingJob, optimizer: optim.Optimizer, total_steps: int) -> LRScheduler:
    """The learning rate by optimizer step."""
    if job.schedule == "onecycle":
        warmup = _ONECYCLE_WARMUP if job.warmup is None else job.warmup
        # One more than are taken: a schedule is stepped after the last step, too. Momentum stays what the job says.
        steps = total_steps + 1
        # A rise that is over at step 0 exactly is one of no length, by which torch would divide.
        share = max(warmup, 1e-6) if warmup * steps != 1 else 1e-6
        return OneCycleLR(optimizer, job.learning_rate, steps, pct_start=share, cycle_momentum=False)
    return LambdaLR(optimizer, _share_of_peak(job.schedule, math.ceil((job.warmup or 0) * total_steps), total_steps))


def _share_of_peak(schedule: str, warmup_steps: int, total_steps: int) -> Callable[[int], float]:
    def share(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        if schedule == "constant":
            return 1.0
        done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return share


def choose_precision(wanted: Precision | None, device: torch.device) -> Precision:
    """What the job asked for, or what suits the device: bf16 where the GPU computes it, fp16 on older ones."""
    if wanted is not None:
        return wanted
    if device.type != "cuda":
        return "fp32"
    # Before 8.0 torch emulates bf16, slower than fp32.
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


def autocast_for(precision: Precision, device: torch.device) -> torch.autocast:
    """The autocast context, reusable for each step."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")
