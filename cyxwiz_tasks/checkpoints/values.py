"""What a checkpoint may hold: what `torch.load(weights_only=True)` reads again, found out before it is written."""

from __future__ import annotations

import sys
from typing import Any

_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def storable(name: str, value: Any) -> Any:
    """The same with every tensor detached and in the CPU's memory, and every dict, list and set a plain one.

    `name` is the way to the value, for the TypeError that is raised for what a checkpoint cannot hold.
    """
    if type(value) in _PLAIN:
        return value
    if isinstance(value, dict):
        return {_key(name, key): storable(f"{name}[{key!r}]", inner) for key, inner in value.items()}
    if type(value) in (list, tuple, set) or type(value).__name__ == "Size":
        made = [storable(f"{name}[{number}]", inner) for number, inner in enumerate(value)]
        return made if isinstance(value, list) else set(made) if isinstance(value, set) else tuple(made)
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        if isinstance(value, torch.Tensor):
            return _tensor(torch, name, value)
        if isinstance(value, torch.dtype | torch.device):
            return value
    if type(value).__module__ == "numpy":
        if getattr(value, "ndim", None) == 0:
            return value.item()
        raise TypeError(f"checkpoint: {name} is a numpy array: give torch.from_numpy(...) of it")
    kind = type(value).__qualname__
    hint = ": give its state_dict()" if hasattr(value, "state_dict") else ""
    raise TypeError(f"checkpoint: {name} is a {kind}, and only tensors, numbers, texts and containers fit in{hint}")


def _key(name: str, key: Any) -> Any:
    if type(key) in _PLAIN or (type(key) is tuple and all(type(part) in _PLAIN for part in key)):
        return key
    raise TypeError(f"checkpoint: {name} has the key {key!r} of type {type(key).__qualname__}: use texts or numbers")


def _tensor(torch: Any, name: str, value: Any) -> Any:
    tensor = value.detach().to("cpu")
    if type(tensor) is not torch.Tensor:
        raise TypeError(f"checkpoint: {name} is a {type(tensor).__qualname__}: give it as a plain tensor")
    if tensor.layout is torch.strided and tensor.numel() * tensor.element_size() < tensor.untyped_storage().nbytes():
        return tensor.clone()  # a part of a larger one, which would be written whole
    return tensor
