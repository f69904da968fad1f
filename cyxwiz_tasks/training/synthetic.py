"""Made-up data that a model can learn: for tests, benchmarks and first runs without any file."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qsl, urlsplit

import numpy as np

from cyxwiz_tasks.errors import DataError
from cyxwiz_tasks.training.chunks import Chunk, Chunks, row_slices
from cyxwiz_tasks.training.names import did_you_mean
from cyxwiz_tasks.training.rows import parse_shape

_IMAGES = {"shape": "3x32x32", "classes": "10", "samples": "10000", "seed": "0"}
_TOKENS = {"vocabulary": "32", "length": "100000", "seed": "0"}


def read_synthetic(uri: str) -> Chunks:
    """Rows of `synthetic://images?shape=...&classes=...&samples=...&seed=...` or `synthetic://tokens?...`."""
    address = urlsplit(uri)
    defaults = _IMAGES if address.netloc == "images" else _TOKENS
    settings = dict(defaults)
    for name, value in parse_qsl(address.query, keep_blank_values=True):
        if name not in defaults:
            choices = ", ".join(defaults)
            raise DataError(f"dataset: unknown setting {name!r}{did_you_mean(name, defaults)}; there are {choices}")
        settings[name] = value
    return _images(settings) if address.netloc == "images" else _tokens(settings)


def _images(settings: Mapping[str, str]) -> Chunks:
    """Each class is a picture of noise; each sample is its class's picture under as much noise again."""
    shape, classes = parse_shape(settings["shape"]), _whole(settings, "classes", 2)
    samples, seed = _whole(settings, "samples", 2), _whole(settings, "seed", 0)
    pictures = np.random.default_rng(seed).integers(0, 128, (classes, *shape), dtype=np.uint8)
    for piece in row_slices(samples, pictures[0].nbytes):
        random = np.random.default_rng([seed, piece.start])
        targets = random.integers(0, classes, piece.stop - piece.start)
        yield Chunk(
            "train", pictures[targets] + random.integers(0, 128, (len(targets), *shape), dtype=np.uint8), targets
        )


def _tokens(settings: Mapping[str, str]) -> Chunks:
    """A chain in which each token has two likely successors, so the best loss is well below that of guessing."""
    vocabulary, length = _whole(settings, "vocabulary", 2), _whole(settings, "length", 2)
    random = np.random.default_rng(_whole(settings, "seed", 0))
    successors = random.integers(0, vocabulary, (vocabulary, 2))
    choices = random.integers(0, 2, length)
    tokens = np.empty(length, dtype=np.int32)
    token = 0
    for position in range(length):
        tokens[position] = token
        token = successors[token, choices[position]] if position % 8 else (token + position) % vocabulary
    yield Chunk("train", tokens, None)


def _whole(settings: Mapping[str, str], name: str, least: int) -> int:
    text = settings[name]
    if not text.isascii() or not text.isdecimal() or int(text) < least:
        raise DataError(f"dataset: {name}={text} must be a whole number of {least} or more")
    return int(text)
