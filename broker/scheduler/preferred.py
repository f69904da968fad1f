"""How much of what a shape prefers each node has: every preference is judged as if it were a requirement."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from broker.scheduler.admission import Admission, Mask
from broker.scheduler.cluster import Cluster
from broker.scheduler.columns import Rows
from cyxwiz_tasks.preferences import GPU_FIELDS, as_requirement, split
from cyxwiz_tasks.resources import Resources


class _Wish(NamedTuple):
    #: of all weights together
    share: float
    admission: Admission
    of_gpus: bool


class Preferred:
    """False where nothing is preferred. What a node has changes only when it describes itself anew."""

    def __init__(self, resources: Resources) -> None:
        total = sum(resources.prefer.values())
        self._wishes = [
            _Wish(weight / total, Admission(Resources.parse(as_requirement(text))), split(text)[0] in GPU_FIELDS)
            for text, weight in resources.prefer.items()
        ]

    def __bool__(self) -> bool:
        return bool(self._wishes)

    def shares(self, cluster: Cluster, rows: Rows, admitted: Mask) -> NDArray[np.float64]:
        """0..1 for each row. `admitted`: the GPUs that the job may use there, of shape (rows, GPUs).

        A preference about GPUs holds where each of these has it: the job may be given any of them.
        """
        shares = np.zeros(len(rows))
        for share, admission, of_gpus in self._wishes:
            has = admission.gpus(cluster.columns, rows)
            holds = ~(admitted & ~has).any(axis=1) if of_gpus else admission.nodes(cluster, rows, has)
            shares += share * holds
        return shares
