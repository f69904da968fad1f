"""What tells a member of a gang of the others, under the names that `torch.distributed` and MPI-like tools read."""

from __future__ import annotations

import os

from cyxwiz_tasks.runtime.pipe import Frame


def gang_environment(gang: Frame) -> dict[str, str]:
    """For `init_process_group(..., init_method="env://")`: each member is the one process of its node.

    The interface that leads to rank 0 is named too, since a guess by the host's name is often wrong; a name that the
    node was started with stays.
    """
    found = {
        "MASTER_ADDR": str(gang["address"]),
        "MASTER_PORT": str(gang["port"]),
        "RANK": str(gang["rank"]),
        "WORLD_SIZE": str(len(gang["nodes"])),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
    }
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if gang["interface"] else ():
        found[name] = os.environ.get(name) or gang["interface"]
    return found
