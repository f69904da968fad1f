"""The names a TrainingJob may use, checked without torch: a typo is refused before a GPU is taken."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

MODELS = ("mlp", "cnn", "resnet18", "transformer")

DATASETS = ("digits", "mnist", "fashion-mnist")

#: Other names for a synthetic data set.
ALIASES = {"mock://cifar10": "synthetic://images?shape=3x32x32&classes=10&samples=50000"}

#: Where a file may lie. fsspec knows 55 protocols, and some of them read any file of the node or run ssh.
SCHEMES = ("file", "http", "https", "s3", "gs", "gcs", "az", "abfs", "hf")

SYNTHETIC = ("images", "tokens")

#: What a file may be, by the end of its name. MNIST's own IDX files have no suffix, so `-ubyte` counts as one.
SUFFIXES = (".csv", ".npy", ".npz", ".h5", ".hdf5", ".parquet", ".safetensors", ".idx", "-ubyte", ".txt")

_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def check_model(name: str) -> None:
    """Raise ValueError with one sentence unless `name` is a built-in model or has the form `package.module:factory`."""
    if name in MODELS or _FACTORY.fullmatch(name):
        return
    raise ValueError(
        f"unknown model {name!r}{did_you_mean(name, MODELS)}; write one of {', '.join(MODELS)}, "
        "or package.module:factory for a model of your own"
    )


def check_dataset(name: str) -> None:
    """Raise ValueError with one sentence unless `name` is a built-in data set or an address of known form."""
    if name in DATASETS or name in ALIASES:
        return
    if "::" in name or "\0" in name:
        raise ValueError(f"{name!r} chains file systems; write the address of one file")
    if not _URI.match(name):
        _check_plain_path(name)
        return
    address = urlsplit(name)
    if address.scheme == "synthetic":
        if address.netloc not in SYNTHETIC:
            raise ValueError(
                f"unknown synthetic data {address.netloc!r}; write synthetic://images or synthetic://tokens"
            )
    elif address.scheme not in SCHEMES:
        raise ValueError(f"scheme {address.scheme!r} is not allowed; write one of {', '.join(SCHEMES)}, synthetic")
    elif suffix_of(address.path) is None:
        raise ValueError(f"{name!r} ends in no known suffix; it must end in one of {', '.join(SUFFIXES)}")


def suffix_of(path: str) -> str | None:
    """The one of SUFFIXES that `path` ends in (a further `.gz` is looked through), or None."""
    bare = path.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if bare.endswith(suffix)), None)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """ " (did you mean 'x'?)" for the closest of `choices`, or an empty string."""
    closest = difflib.get_close_matches(word.lower(), list(choices), n=1, cutoff=0.5)
    return f" (did you mean {closest[0]!r}?)" if closest else ""


def _check_plain_path(name: str) -> None:
    if suffix_of(name) is not None:
        return
    if "/" in name:
        raise ValueError(f"{name!r} ends in no known suffix; it must end in one of {', '.join(SUFFIXES)}")
    raise ValueError(
        f"unknown dataset {name!r}{did_you_mean(name, DATASETS)}; write one of {', '.join(DATASETS)}, "
        "synthetic://images, synthetic://tokens, or the address of a file such as s3://bucket/train.parquet"
    )
