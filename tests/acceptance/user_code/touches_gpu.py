"""A user's own module that computes on the GPU while it is imported: no process that is forked after that could."""

from __future__ import annotations

from typing import Any

import torch

from cyxwiz_tasks import Resources, job

TABLE = torch.arange(4, device="cuda") if torch.cuda.is_available() else torch.arange(4)


@job(resources=Resources(gpus=1))
def adds_up(ctx: Any) -> int:
    return int(TABLE.to(ctx.device).sum().item())
