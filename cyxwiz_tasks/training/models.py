"""The built-in models, and models of the user's own. Each adapts to the data's input shape and number of classes."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from cyxwiz_tasks.errors import InvalidJob
from cyxwiz_tasks.training.names import did_you_mean
from cyxwiz_tasks.training.resnet import resnet18
from cyxwiz_tasks.training.transformer import CausalTransformer


def build_model(name: str, options: Mapping[str, Any], input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """A new model on the CPU with random weights.

    `input_shape` is that of one sample: (features,), (channels, height, width), or (context,) for text.
    Raises InvalidJob when the model does not fit the data, knows no such option, or cannot be imported.
    """
    factory = _BUILT_IN.get(name) or _import_factory(name)
    accepted = _parameters(factory)
    shapes = {"input_shape": input_shape, "classes": classes}
    arguments = {key: value for key, value in shapes.items() if accepted is None or key in accepted} | dict(options)
    for option in options:
        if accepted is not None and option not in accepted:
            choices = sorted(accepted - shapes.keys())
            hint = f"It takes {', '.join(choices)}" if choices else "It takes none"
            raise InvalidJob(
                f"model_options.{option}", f"model {name!r} has no such option{did_you_mean(option, choices)}", hint
            )
    try:
        model = factory(**arguments)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise InvalidJob("model", f"{name!r} cannot be built for inputs of shape {input_shape}: {error}") from error
    if not isinstance(model, nn.Module):
        raise InvalidJob("model", f"{name!r} returned {type(model).__name__}", "Return a torch.nn.Module")
    return model


def mlp(
    input_shape: tuple[int, ...], classes: int, *, hidden: Sequence[int] = (128, 64), dropout: float = 0.0
) -> nn.Module:
    """Fully connected layers with ReLU over the flattened sample."""
    layers: list[nn.Module] = [nn.Flatten()]
    width = math.prod(input_shape)
    for units in hidden:
        layers += [nn.Linear(width, units), nn.ReLU(inplace=True), nn.Dropout(dropout)]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, classes))


def cnn(
    input_shape: tuple[int, ...], classes: int, *, channels: Sequence[int] = (32, 64), dropout: float = 0.0
) -> nn.Module:
    """3x3 convolutions, each with batch norm, ReLU and a 2x2 pool while the picture is large enough to halve."""
    need_images("cnn", input_shape)
    layers: list[nn.Module] = []
    width, height, breadth = input_shape
    for filters in channels:
        layers += [nn.Conv2d(width, filters, 3, padding=1, bias=False), nn.BatchNorm2d(filters), nn.ReLU(inplace=True)]
        width = filters
        if min(height, breadth) >= 2:
            layers.append(nn.MaxPool2d(2))
            height, breadth = height // 2, breadth // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(dropout), nn.Linear(width * height * breadth, classes))


def need_images(model: str, input_shape: tuple[int, ...]) -> None:
    """Raise InvalidJob unless a sample is (channels, height, width)."""
    if len(input_shape) != 3:
        hint = 'Use model="mlp", or say dataset_options={"shape": "1x28x28"} if a row is a picture'
        raise InvalidJob(
            "model", f"{model!r} needs pictures (channels, height, width), a row has shape {input_shape}", hint
        )


def _resnet18(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    need_images("resnet18", input_shape)
    return resnet18(input_shape, classes)


_BUILT_IN: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "cnn": cnn,
    "resnet18": _resnet18,
    "transformer": CausalTransformer,
}


def _import_factory(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        raise InvalidJob(
            "model", f"{name!r} cannot be imported: {error}", "It must be importable on the node"
        ) from error
    except AttributeError:
        raise InvalidJob(
            "model", f"module {module_name!r} has no {attribute!r}", "Write package.module:factory"
        ) from None
    if not callable(factory):
        raise InvalidJob("model", f"{name!r} cannot be called", "Write the name of a function or class")
    return factory  # type: ignore[no-any-return]  # getattr knows no type


def _parameters(factory: Callable[..., Any]) -> set[str] | None:
    """The keyword arguments that `factory` takes; None when it takes any."""
    parameters = inspect.signature(factory).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters if parameter.kind is not parameter.POSITIONAL_ONLY}
