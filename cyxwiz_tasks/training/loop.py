"""The built-in training, top to bottom: load, loop, judge, write.

No step waits for the GPU: loss and correct answers are summed on the device and read when a report is due. The loss of
an optimizer step is a sum over its samples divided by their number, so micro-batches of uneven size count rightly.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cyxwiz_tasks.errors import TrainingDiverged
from cyxwiz_tasks.training.artifacts import MetricsLog, write_artifacts
from cyxwiz_tasks.training.batches import Batches
from cyxwiz_tasks.training.checkpointing import TrainingCheckpoints
from cyxwiz_tasks.training.context import TrainingContext
from cyxwiz_tasks.training.datasets import Dataset, Part, epoch_order, load_dataset
from cyxwiz_tasks.training.optimizers import autocast_for, choose_precision
from cyxwiz_tasks.training.reproducibility import reproducible
from cyxwiz_tasks.training.state import Best, TrainingState, samples_in_epoch
from cyxwiz_tasks.training_job import TrainingJob

#: No gradients are kept while judging, so larger batches fit: so many times larger, up to so many samples.
_JUDGE_BATCH_FACTOR, _JUDGE_BATCH_SIZE = 4, 256
_QUALITY = ("loss", "accuracy", "val_loss", "val_accuracy")


def train(job: TrainingJob, ctx: TrainingContext) -> dict[str, Any]:
    """Train, write the artifacts, and return {"metrics", "artifacts", "stopped"}. Goes on from a checkpoint, if any.

    `stopped` is None after all epochs, else "early_stopping", "max_steps" or "stop_requested".
    Raises InvalidJob or DataError when model and data cannot be used as asked, TrainingDiverged for a loss of NaN,
    CheckpointUnusable when the checkpoint is not one of this job.
    """
    started = time.monotonic()
    torch.set_num_threads(ctx.threads)
    device = torch.device(ctx.device)
    with reproducible(job.seed, job.deterministic, device), MetricsLog(ctx) as log:
        dataset = load_dataset(job, ctx.cache, ctx.data_roots)
        channels_last = _wants_channels_last(job, dataset, device)
        batches = Batches(dataset, device, threads=ctx.threads, channels_last=channels_last)
        state = TrainingState.start(job, dataset, device, channels_last=channels_last)
        checkpoints = TrainingCheckpoints(job, ctx, state, log)
        checkpoints.resume()
        stopped = fit(job, ctx, state, batches, log, checkpoints)
        if state.best.weights is not None:
            state.model.load_state_dict(state.best.weights)
        metrics = _totals(state, started)
        if stopped != "stop_requested" and len(dataset.test):
            metrics |= _final_test(job, state, dataset, batches)
    result = {"metrics": metrics, "stopped": stopped}
    return result | {"artifacts": write_artifacts(ctx.artifacts, job, dataset, state.model, result)}


def fit(
    job: TrainingJob,
    ctx: TrainingContext,
    state: TrainingState,
    batches: Batches,
    log: MetricsLog,
    checkpoints: TrainingCheckpoints,
) -> str | None:
    """Train from where `state` is to the end of the last epoch; return why it stopped sooner, or None."""
    while state.epoch < job.epochs:
        stopped = train_epoch(job, ctx, state, batches, log, checkpoints)
        if stopped == "stop_requested":
            checkpoints.save()
            return stopped
        values = _progress(job, state)
        held_out = batches.dataset.validation
        if len(held_out):
            values["val_loss"], values["val_accuracy"] = judge(job, state, held_out, batches)
            _remember_best(job, state, values["val_loss"])
        log.report(**values)
        state.last_epoch = {name: values[name] for name in _QUALITY if name in values}
        state.begin_next_epoch()
        patience = job.early_stopping_patience
        if patience is not None and state.epoch - state.best.epoch >= patience:
            return "early_stopping" if state.epoch < job.epochs else None
        if stopped is not None:
            return stopped
        # Only now: a training that has come to its end would not see that again.
        checkpoints.save_if_due()
    return None


def train_epoch(
    job: TrainingJob,
    ctx: TrainingContext,
    state: TrainingState,
    batches: Batches,
    log: MetricsLog,
    checkpoints: TrainingCheckpoints,
) -> str | None:
    """The optimizer steps of one epoch, from `state.position` on."""
    part = batches.dataset.train
    order = epoch_order(part.rows, job.seed, state.epoch)[: samples_in_epoch(len(part), job.batch_size)]
    micro_batches = batches.of(part, order[state.position :], job.batch_size)
    autocast = autocast_for(choose_precision(job.precision, state.device), state.device)
    counted_to = reported_at = time.monotonic()
    stopped = None
    state.model.train()
    while state.position < len(order):
        if ctx.should_stop:
            stopped = "stop_requested"
            break
        samples = min(job.batch_size * job.gradient_accumulation, len(order) - state.position)
        for _ in range(math.ceil(samples / job.batch_size)):
            inputs, targets = next(micro_batches)
            with autocast:
                logits = state.forward(inputs)
                loss_sum = cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="sum")
            per_sample = targets.numel() // len(targets)
            state.scaler.scale(loss_sum / (samples * per_sample)).backward()  # type: ignore[no-untyped-call]
            state.loss_sum += loss_sum.detach()
            state.correct += (logits.detach().argmax(-1) == targets).sum()
            state.targets_seen += targets.numel()
        _optimizer_step(job, state)
        state.position += samples
        state.samples_trained += samples
        now = time.monotonic()
        state.training_seconds, counted_to = state.training_seconds + now - counted_to, now
        if now - reported_at >= job.report_every_seconds or state.step == 1:
            log.report(**_progress(job, state))
            reported_at = now
        # More only where the checkpoint is of a longer training than this one.
        if job.max_steps is not None and state.step >= job.max_steps:
            stopped = "max_steps"
            break
        checkpoints.save_if_due()
    state.loss_sum.item()  # Waits for the GPU, so that the time of steps that were only queued counts as well.
    state.training_seconds += time.monotonic() - counted_to
    return stopped


def judge(job: TrainingJob, state: TrainingState, part: Part, batches: Batches) -> tuple[float, float]:
    """Mean loss and share of correct answers of the present weights on a part."""
    loss_sum = torch.zeros_like(state.loss_sum)
    correct = torch.zeros_like(state.correct)
    count = 0
    state.model.eval()
    with torch.inference_mode(), autocast_for(choose_precision(job.precision, state.device), state.device):
        size = max(job.batch_size, min(_JUDGE_BATCH_FACTOR * job.batch_size, _JUDGE_BATCH_SIZE))
        for inputs, targets in batches.of(part, part.rows, size):
            logits: Tensor = state.model(inputs)
            loss_sum += cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="sum")
            correct += (logits.argmax(-1) == targets).sum()
            count += targets.numel()
    return _finite(loss_sum.item() / count, state), correct.item() / count


def _final_test(job: TrainingJob, state: TrainingState, dataset: Dataset, batches: Batches) -> dict[str, Any]:
    if (
        dataset.test_is_validation and state.best.weights is None
    ):  # The last epoch has judged these weights on these rows.
        loss, accuracy = state.last_epoch["val_loss"], state.last_epoch["val_accuracy"]
    else:
        loss, accuracy = judge(job, state, dataset.test, batches)
    tested_on = "validation split" if dataset.test_is_validation else "test part"
    return {"test_loss": loss, "test_accuracy": accuracy, "tested_on": tested_on}


def _optimizer_step(job: TrainingJob, state: TrainingState) -> None:
    if job.clip_norm is not None:
        state.scaler.unscale_(state.optimizer)
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), job.clip_norm)
    scale = state.scaler.get_scale()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    # A lower scale says that fp16 overflowed and the optimizer's step was left out: the schedule waits as well.
    if state.scaler.get_scale() >= scale:
        state.schedule.step()
    state.step += 1


def _progress(job: TrainingJob, state: TrainingState) -> dict[str, Any]:
    """The values of one report. Reads the sums, so it waits for the GPU."""
    loss = _finite(state.loss_sum.item() / state.targets_seen, state)
    samples_per_second = state.samples_trained / max(state.training_seconds, 1e-9)
    values = {
        "epoch": state.epoch + 1,
        "epochs": job.epochs,
        "step": state.step,
        "total": state.total_steps,
        "loss": loss,
        "accuracy": state.correct.item() / state.targets_seen,
        "learning_rate": state.schedule.get_last_lr()[0],
        "samples_per_second": samples_per_second,
        "eta_seconds": (state.total_steps - state.step) * state.training_seconds / state.step,
    }
    if state.device.type == "cuda":
        values["gpu_memory_bytes"] = torch.cuda.max_memory_allocated(state.device)
    return values


def _finite(loss: float, state: TrainingState) -> float:
    if not math.isfinite(loss):
        hint = 'try a lower learning_rate, clip_norm=1.0, or precision="fp32"'
        raise TrainingDiverged(
            f"the loss became {loss} in epoch {state.epoch + 1}, by step {state.step}: {hint}",
            epoch=state.epoch + 1,
            step=state.step,
        )
    return loss


def _remember_best(job: TrainingJob, state: TrainingState, loss: float) -> None:
    if loss >= state.best.loss:
        return
    state.best = Best(state.epoch + 1, loss)
    if job.early_stopping_patience is not None:
        state.best.weights = {name: value.detach().clone() for name, value in state.model.state_dict().items()}


def _totals(state: TrainingState, started: float) -> dict[str, Any]:
    return state.last_epoch | {
        "steps": state.step,
        "epochs": state.epoch,
        "best_epoch": state.best.epoch or None,
        "samples_per_second": state.samples_trained / max(state.training_seconds, 1e-9),
        "seconds": time.monotonic() - started,
    }


def _wants_channels_last(job: TrainingJob, dataset: Dataset, device: torch.device) -> bool:
    if len(dataset.input_shape) != 3:
        return False
    return device.type == "cuda" if job.channels_last is None else job.channels_last
