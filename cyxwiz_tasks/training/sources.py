"""From the name of a data set to its normalised copy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cyxwiz_tasks.training.digits import read_digits
from cyxwiz_tasks.training.files import check_options, open_files
from cyxwiz_tasks.training.mnist import MIRRORS, open_mnist
from cyxwiz_tasks.training.names import ALIASES
from cyxwiz_tasks.training.normalised import Normalised, entry_for
from cyxwiz_tasks.training.synthetic import read_synthetic


def open_source(name: str, options: Mapping[str, Any], cache: Path, data_roots: tuple[Path, ...]) -> Normalised:
    """The cache entry of a data set, made now if this node has none. Raises DataError."""
    cache.mkdir(parents=True, exist_ok=True)
    uri = ALIASES.get(name, name)
    if uri == "digits":
        check_options(options, ())
        return entry_for(cache, uri, options, read_digits)
    if uri in MIRRORS:
        return open_mnist(uri, options, cache, data_roots)
    if uri.startswith("synthetic://"):
        check_options(options, ("context",) if uri.startswith("synthetic://tokens") else ())
        return entry_for(cache, uri, options, lambda: read_synthetic(uri))
    return open_files(uri, options, cache, data_roots)
