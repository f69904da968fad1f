"""Serves batches on the device: from tensors that live there when they fit, else through torch's DataLoader."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from cyxwiz_tasks.training.chunks import Array
from cyxwiz_tasks.training.datasets import Dataset, Part

#: The share of the device's memory that data may take; the rest is for weights and activations.
_DATA_SHARE = 0.4
_MOST_READERS = 4


class Batches:
    """The batches of one data set: inputs as float32, standardised (text: int64), targets as int64."""

    def __init__(
        self,
        dataset: Dataset,
        device: torch.device,
        *,
        threads: int,
        channels_last: bool,
        memory_bytes: int | None = None,
    ) -> None:
        self.dataset = dataset
        self.device = device
        self._is_text = dataset.is_text
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._budget_bytes = memory_for_data_bytes(device) if memory_bytes is None else memory_bytes
        self._readers = min(_MOST_READERS, max(0, threads - 1))
        shape = (-1, 1, 1) if len(dataset.input_shape) == 3 else (-1,)
        self._mean = torch.tensor(dataset.mean, device=device).view(shape)
        self._scale = 1 / torch.tensor(dataset.std, device=device).view(shape)
        self._resident: dict[int, tuple[Tensor, Tensor]] = {}
        for part in (dataset.train, dataset.test):
            self._keep_on_device(part)

    def of(self, part: Part, order: Array, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of the rows in `order`; the last one may be smaller."""
        resident = self._resident.get(id(part.inputs))
        if resident is None:
            yield from self._streamed(part, order, batch_size)
            return
        inputs, targets = resident
        rows = torch.from_numpy(order).to(self.device)
        for batch in torch.split(rows, batch_size):
            yield self._ready(inputs[batch], targets[batch])

    def _keep_on_device(self, part: Part) -> None:
        size = part.inputs.nbytes + part.targets.nbytes
        if id(part.inputs) in self._resident or size > self._budget_bytes:
            return
        self._budget_bytes -= size
        pair = torch.from_numpy(part.inputs).to(self.device), torch.from_numpy(part.targets).to(self.device)
        self._resident[id(part.inputs)] = pair

    def _streamed(self, part: Part, order: Array, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
            _Rows(part),
            batch_sampler=(order[first : first + batch_size].tolist() for first in range(0, len(order), batch_size)),
            collate_fn=_unchanged,
            num_workers=self._readers,
            # Each start of a loader draws a number: from the global generator, a resumed training would draw one more.
            generator=torch.Generator(),
            pin_memory=self.device.type == "cuda",
        )
        for inputs, targets in loader:
            yield self._ready(inputs.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True))

    def _ready(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if self._is_text:
            return inputs.long(), targets.long()
        scaled = (inputs.float() - self._mean) * self._scale
        if scaled.ndim == 4:
            scaled = scaled.to(memory_format=self._memory_format)
        return scaled, targets


class _Rows(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """A whole batch is one indexing of the mapped file: row by row took ten times as long."""

    def __init__(self, part: Part) -> None:
        self._part = part

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self._part.inputs[rows]), torch.from_numpy(self._part.targets[rows])


def memory_for_data_bytes(device: torch.device) -> int:
    """A share of what is free on the GPU and may be taken; on a CPU of all memory, as a mapped file is page cache."""
    if device.type == "cuda":
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        may_take_bytes = total_bytes * torch.cuda.get_per_process_memory_fraction(device)
        return int(_DATA_SHARE * min(free_bytes, may_take_bytes))
    return int(_DATA_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _unchanged(batch: Any) -> Any:
    return batch
