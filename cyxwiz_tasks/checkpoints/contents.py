"""The files of one generation: each dict of tensors as `<name>.safetensors`, all else in `trainer.pt`.

`trainer.pt` is only ever read with `weights_only=True`, which makes no objects but tensors and plain values. torch is
imported here alone, once a checkpoint is really written or read.
"""

from __future__ import annotations

import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from cyxwiz_tasks.errors import CheckpointUnusable

REST = "trainer.pt"
_WEIGHTS = ".safetensors"


def write_contents(folder: Path, state: dict[str, Any]) -> None:
    """Write `state`, which `storable` has passed, into a folder. Raises OSError where it cannot be written."""
    import torch
    from safetensors.torch import save_file

    weights = {name: value for name, value in state.items() if _is_weights(value)}
    try:
        for name, tensors in weights.items():
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / (name + _WEIGHTS))
        with open(folder / REST, "wb") as handle:
            torch.save({name: value for name, value in state.items() if name not in weights}, handle)
    except Exception as error:
        raise _os_error(error) or error from error


def read_contents(folder: Path, files: list[str], versions: dict[str, str]) -> dict[str, Any]:
    """What was written. Raises OSError, and CheckpointUnusable where other versions wrote it."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: dict[str, Any] = torch.load(folder / REST, map_location="cpu", weights_only=True)
        for name in files:
            if name.endswith(_WEIGHTS):
                state[name.removesuffix(_WEIGHTS)] = load_file(folder / name)
    except OSError:
        raise
    except (RuntimeError, ValueError, KeyError, EOFError, SafetensorError, UnpicklingError) as error:
        raise CheckpointUnusable(
            f"the checkpoint {folder} is whole, but torch {torch.__version__} cannot read what torch "
            f"{versions.get('torch')} wrote ({str(error).splitlines()[0]}): run the job where that version is, or "
            f"submit it anew to start from the beginning"
        ) from error
    return state


def versions() -> dict[str, str]:
    """Of what writes a checkpoint."""
    import platform

    import torch

    from cyxwiz_tasks.version import __version__

    return {"torch": str(torch.__version__), "python": platform.python_version(), "cyxwiz_tasks": __version__}


def _is_weights(value: Any) -> bool:
    """Whether safetensors keeps it as it is: names and tensors, none of which shares its memory with another."""
    import torch

    if not isinstance(value, dict) or not value:
        return False
    tensors = list(value.values())
    if not all(isinstance(name, str) for name in value) or not all(isinstance(each, torch.Tensor) for each in tensors):
        return False
    if any(tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex() for tensor in tensors):
        return False
    addresses = [tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()]
    return len(addresses) == len(set(addresses))


def _os_error(error: BaseException) -> OSError | None:
    """The kernel's error inside what the two libraries make of it.

    torch raises a RuntimeError in the context of the OSError; safetensors' has only its text: "(os error 28)".
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            return seen
        if type(seen).__name__ == "SafetensorError" and (found := re.search(r"\(os error (\d+)\)", str(seen))):
            return OSError(int(found[1]), str(seen))
        seen = seen.__cause__ or seen.__context__
    return None
