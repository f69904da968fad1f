"""One forward pass before the training starts, so that a model that does not fit its data says so in one sentence."""

from __future__ import annotations

import torch
from torch import nn

from cyxwiz_tasks.errors import InvalidJob
from cyxwiz_tasks.training.datasets import Dataset
from cyxwiz_tasks.training.names import MODELS


def check_kind(name: str, is_text: bool) -> None:
    """Raise InvalidJob for a built-in model on data of the other kind."""
    if name == "transformer" and not is_text:
        hint = 'Use model="mlp", "cnn" or "resnet18"'
        raise InvalidJob("model", "'transformer' needs text: a .txt file, or synthetic://tokens", hint)
    if name in MODELS and name != "transformer" and is_text:
        raise InvalidJob(
            "model", f"{name!r} needs rows of numbers, and this dataset is text", 'Use model="transformer"'
        )


def check_model_fits(name: str, model: nn.Module, dataset: Dataset, device: torch.device) -> None:
    """Raise InvalidJob unless the model turns two samples into one row of logits per target.

    On a GPU a class number past the last logit is an assertion that ends the process, so it must be found here.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InvalidJob("model", f"{name!r} has no parameters to train")
    dtype = torch.int64 if dataset.is_text else torch.float32
    samples = torch.zeros((2, *dataset.input_shape), dtype=dtype, device=device)
    wanted = (2, *(dataset.input_shape if dataset.is_text else ()), dataset.classes)
    model.eval()
    try:
        with torch.no_grad():
            logits = model(samples)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = f"{name!r} fails on inputs of shape {tuple(samples.shape)}: {error}"
        raise InvalidJob("model", reason, "See that model and dataset belong together") from error
    shape = tuple(getattr(logits, "shape", ()))
    if shape != wanted:
        reason = f"{name!r} gives logits of shape {shape} where the data needs {wanted} (samples, ..., classes)"
        raise InvalidJob("model", reason, "Let the factory take `classes` and `input_shape`")
