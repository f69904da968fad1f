"""Carries out the plan: each fault at its time, in a thread of its own, with what proves that it struck."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from tests.chaos.faults import FAULTS
from tests.chaos.faults.fault import Fault, Scene
from tests.chaos.schedule import Kind, Planned
from tests.chaos.stack import Journal, Stack


def available(stack: Stack, only: Sequence[str] = ()) -> tuple[list[Kind], dict[str, str]]:
    """The kinds of faults that this machine can inject, and what is missing for the others."""
    chosen = {name: fault for name, fault in FAULTS.items() if not only or name in only}
    missing = {name: lacks for name, fault in chosen.items() if (lacks := fault.missing(stack)) is not None}
    return [fault.kind for name, fault in chosen.items() if name not in missing], missing


class Nemesis:
    """Runs a plan in the background. `run()` returns once every fault is healed."""

    def __init__(self, scene: Scene, plan: Sequence[Planned], log: Journal) -> None:
        self.scene, self.plan, self.log = scene, plan, log
        self._thread = threading.Thread(target=self.run, name="nemesis", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def join(self, seconds: float | None = None) -> None:
        self._thread.join(seconds)

    def run(self) -> None:
        began = time.monotonic()
        running: list[Future[None]] = []
        with ThreadPoolExecutor(16, "fault") as pool:
            for planned in self.plan:
                if self.scene.over.wait(max(0.0, began + planned.at - time.monotonic())):
                    break
                running.append(pool.submit(self._strike, planned))
        for future in running:
            future.result()

    def _strike(self, planned: Planned) -> None:
        fault: Fault = FAULTS[planned.kind](self.scene, planned)
        began_at, error = time.time(), None
        self.log.write(event="begins", number=planned.number, kind=planned.kind, planned=planned.as_dict())
        try:
            fault.inject()
            self.scene.over.wait(planned.seconds)
        except Exception:
            error = traceback.format_exc()
        try:
            fault.heal()
        except Exception:
            error = (error or "") + traceback.format_exc()
        self.log.write(
            event="ended",
            number=planned.number,
            kind=planned.kind,
            hit=bool(fault.proof),
            proof=fault.proof,
            began_at=began_at,
            error=error,
        )
