"""Two network namespaces with a cable between them, and packets that get lost on it. Needs root, iproute2, and Linux.

The loss is the kernel's own: a filter where packets arrive drops each of them, TCP's acknowledgements and connection
attempts included, with a given probability and independently of the others, and both ends' TCP makes of that what it
does. It is a classic BPF program of four instructions, since many a kernel is built without `netem`.
"""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

#: to load a word from here is to draw a random one: SKF_AD_OFF + SKF_AD_RANDOM of linux/filter.h
_RANDOM = 2**32 - 0x1000 + 56
#: verdicts of a classifier: TC_ACT_SHOT, TC_ACT_UNSPEC
_DROP, _GO_ON = 2, 2**32 - 1


@dataclass(frozen=True)
class Machine:
    """A namespace, and its end of the cable."""

    namespace: str
    interface: str
    address: str

    def command(self, *words: str) -> list[str]:
        """What to run to run a command there."""
        return ["ip", "netns", "exec", self.namespace, *words]

    def lose(self, share: float) -> None:
        """Drop this share of the packets that arrive, 0 to 1."""
        _run("tc", "-n", self.namespace, "qdisc", "replace", "dev", self.interface, "clsact")
        program = f"4,32 0 0 {_RANDOM},53 1 0 {int(share * 2**32)},6 0 0 {_DROP},6 0 0 {_GO_ON}"
        filtered = ["filter", "add", "dev", self.interface, "ingress", "bpf", "direct-action", "bytecode", program]
        _run("tc", "-n", self.namespace, *filtered)

    def lose_nothing(self) -> None:
        _run("tc", "-n", self.namespace, "qdisc", "del", "dev", self.interface, "clsact")

    def segments(self) -> dict[str, int]:
        """TCP's counters there, such as `OutSegs` and `RetransSegs`."""
        text = _run(*self.command("cat", "/proc/net/snmp"))
        names, values = (line.split()[1:] for line in text.splitlines() if line.startswith("Tcp:"))
        return dict(zip(names, map(int, values), strict=True))


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Raises subprocess.CalledProcessError, or OSError, where namespaces cannot be made."""
    mark = secrets.token_hex(3)
    machines = tuple(
        Machine(f"cyx-{mark}-{end}", f"v{mark}{end}", f"10.213.8.{at}") for at, end in ((1, "a"), (2, "b"))
    )
    made = []
    try:
        for machine in machines:
            _run("ip", "netns", "add", machine.namespace)
            made.append(machine)
        near, far = machines
        cable = ["link", "add", near.interface, "netns", near.namespace, "type", "veth"]
        _run("ip", *cable, "peer", far.interface, "netns", far.namespace)
        for machine in machines:
            _run("ip", "-n", machine.namespace, "addr", "add", f"{machine.address}/24", "dev", machine.interface)
            _run("ip", "-n", machine.namespace, "link", "set", machine.interface, "up")
            _run("ip", "-n", machine.namespace, "link", "set", "lo", "up")
        yield near, far
    finally:
        for machine in made:
            _run("ip", "netns", "del", machine.namespace)


def _run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout
