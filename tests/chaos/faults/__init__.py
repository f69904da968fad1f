"""Every kind of fault, by its name."""

from __future__ import annotations

from tests.chaos.faults import boundaries, machine, messages, network, postgres_server, processes, redis_server
from tests.chaos.faults.fault import Fault

FAULTS: dict[str, type[Fault]] = {
    fault.kind.name: fault
    for module in (processes, boundaries, redis_server, postgres_server, network, messages, machine)
    for fault in module.KINDS
}
