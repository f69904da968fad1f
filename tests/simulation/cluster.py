"""A whole cluster for one seed: servers, two schedulers, nodes, clients, faults; one hour, and what must hold."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Sequence

from pydantic import SecretStr

from cyxwiz_tasks.protocol.names import COMMANDS, REPORTS, control_key, node_queue
from cyxwiz_tasks.settings import Settings
from cyxwiz_tasks.states import TERMINAL_JOB_STATES
from tests.simulation import checks, faults
from tests.simulation.clock import simulated
from tests.simulation.fake_postgres import FakePostgres, accept_placed, fenced, fences_itself
from tests.simulation.fake_redis import FakeRedis
from tests.simulation.memory_db.tables import assert_current
from tests.simulation.node import SimNode, Witness
from tests.simulation.scheduler import SimScheduler
from tests.simulation.workload import Workload, machines
from tests.simulation.world import Broken, World

HOUR_SECONDS = 3600.0
#: jobs come and faults strike until then; afterwards everything gets well and has to end
_BUSY_SECONDS, _HEAL_SECONDS = 2400.0, 2640.0
#: after so much time without a disturbance, all that can go on has to go on
CALM_SECONDS = 40.0
_SETTINGS = Settings(broker_url=SecretStr("redis://simulated"), database_url=SecretStr("postgresql://simulated"))


class SimCluster:
    def __init__(
        self,
        seed: int,
        trace: Callable[[str], None] | None = None,
        kinds: Sequence[str] = (),
        gangs: float = 0.0,
    ) -> None:
        """`kinds` of faults: see `faults.FAULTS`; `gangs`: the share of jobs on several nodes."""
        self._kinds = kinds
        self.world = world = World(seed, trace)
        self.server = FakeRedis(world)
        self.postgres = FakePostgres(world)
        self.witness = Witness()
        self.workload = Workload(world, self.server, gangs)
        self.schedulers = [SimScheduler(n, world, _SETTINGS, self.server, self.postgres) for n in ("first", "second")]
        self.nodes = [
            SimNode(self._uuid(), f"n{at}", world, _SETTINGS, self.server, self.witness, able, self.workload.script_of)
            for at, able in enumerate(machines(world, least=3 if gangs else 2))
        ]
        self.newest_token = 0
        self.disturbed_at = 0.0
        self._looks = 0
        self.flushed_at = float("-inf")
        #: hooks of the servers
        self._listeners = {key: node for node in self.nodes for key in (node_queue(node.id), control_key(node.id))}
        self.server.pushed = self._pushed
        self.server.beat = self._beat
        self.server.connected = lambda: [(n.connection, n.id) for n in self.nodes if n.connection is not None]
        self.server.said = lambda command: checks.at_word(self, command)
        self.postgres.committed = lambda tx: checks.at_commit(self, tx)

    def run(self) -> None:
        """One hour. Raises Broken with everything that did not hold."""
        random.seed(self.world.seed)
        stand_ins = {
            "db__fenced__fenced": fenced,
            "db__fenced__fences_itself": fences_itself,
            "db__first_attempts__accept_placed": accept_placed,
            "db__leadership__assert_current": assert_current,
            "cyxwiz_tasks__failpoints__hit": self._failpoint,
        }
        with simulated(self.world, **stand_ins):
            try:
                self._live()
            except Broken as broken:
                self.world.broken.append(str(broken))
        if self.world.broken:
            raise Broken("\n".join(self.world.broken))

    def _live(self) -> None:
        world = self.world
        self.workload.plan(world.random.randint(40, 120), _BUSY_SECONDS)
        faults.plan(self, self._kinds, world.random.randint(10, 80), _BUSY_SECONDS)
        for service in (*self.schedulers, *self.nodes):
            world.after(world.between(0.0, 2.0), service.start)
        world.after(1.0, self._look)
        world.after(200.0, self._release)
        world.run_until(_HEAL_SECONDS)
        self._heal()
        while world.now < 2 * HOUR_SECONDS and not world.broken:
            world.run_until(world.now + 60.0)
            if self._is_over():
                # Whatever is to be said about the last ends is said by then; the rest of the hour is empty.
                world.run_until(world.now + 90.0)
                if self._is_over():
                    break
        checks.at_end(self)

    # What faults need -----------------------------------------------------------------------------------------------

    def any_node(self) -> SimNode:
        return self.world.random.choice(self.nodes)

    def any_scheduler(self) -> SimScheduler:
        """More often the one that leads."""
        leads = [scheduler for scheduler in self.schedulers if scheduler.leader is not None]
        return self.world.random.choice(leads if leads and self.world.happens(0.8) else self.schedulers)

    def seconds(self, longest: float) -> float:
        """How long something lasts: more often short than long."""
        return longest * self.world.random.random() ** 2 + 0.1

    def stop_redis(self, seconds: float) -> None:
        self._beat()
        self.world.say("redis", "away", seconds=round(seconds, 1))
        self.server.up = False
        for scheduler in self.schedulers:
            scheduler.disturb()
        self.world.after(seconds, self._start_redis)

    def flush_redis(self) -> None:
        self.world.say("redis", "emptied")
        self.server.flush()
        self.flushed_at = self.server.time()
        self.disturbed_at = self.world.now

    def stop_postgres(self, seconds: float) -> None:
        self.world.say("postgres", "away", seconds=round(seconds, 1))
        self.postgres.stop()
        self.world.after(seconds, self._start_postgres)

    def _start_redis(self) -> None:
        if not self.server.up:
            self.world.say("redis", "is back")
            self.server.up = True
            for scheduler in self.schedulers:
                scheduler.disturb()
            for node in self.nodes:
                node.redis_restarted()
                node.arrived()

    def _start_postgres(self) -> None:
        self.postgres.up = True

    # ----------------------------------------------------------------------------------------------------------------

    def _heal(self) -> None:
        self.world.say("all", "is well from now on")
        self._start_redis()
        self._start_postgres()
        for scheduler in self.schedulers:
            scheduler.armed.clear()
            scheduler.answers_to_lose = 0
            scheduler.link()
        for node in self.nodes:
            node.start()
            node.arrived()
            # A person's drain is for a person to end; a quarantine ends by itself.
            row = self.postgres.tables.nodes.get(node.id)
            if row is not None and row.cordon == "draining":
                self.workload.undrain(node.name)

    def _is_over(self) -> bool:
        jobs = self.postgres.tables.jobs
        asked = all(job.acked or job.refused or job.once for job in self.workload.jobs.values())
        return asked and all(
            job.state in (*TERMINAL_JOB_STATES, "held") or (job.state == "pending" and bool(job.learned))
            for job in jobs.values()
        )

    def _pushed(self, key: str) -> None:
        node = self._listeners.get(key)
        if node is not None:
            node.arrived()
        elif key.startswith("cyxwiz.inbox") or key in (REPORTS, COMMANDS):
            for scheduler in self.schedulers:
                scheduler.arrived()

    def _beat(self) -> None:
        for node in self.nodes:
            node.beat()

    def _look(self) -> None:
        for node in self.nodes:
            node.look_at_link()
            if not (node.reaches and node.registered):
                node.disturbed_at = self.world.now
        if not self._is_well():
            self.disturbed_at = self.world.now
        self._looks += 1
        if self._looks % 40 == 0 and self.is_calm():
            checks.at_calm(self)
        self.world.after(0.5, self._look)

    def is_calm(self) -> bool:
        """Whether the services were well for a while."""
        return self._is_well() and self.world.now - self.disturbed_at > CALM_SECONDS

    def _is_well(self) -> bool:
        leads = [one for one in self.schedulers if one.leader is not None]
        calm = len(leads) == 1 and leads[0].linked and not leads[0].frozen
        return calm and self.server.up and self.postgres.up

    def _release(self) -> None:
        """Somebody looks at what is held, now and then."""
        for id, job in self.postgres.tables.jobs.items():
            if job.state == "held" and self.world.happens(0.5):
                self.workload.release(id)
        if self.world.now < _BUSY_SECONDS:
            self.world.after(200.0, self._release)

    def _failpoint(self, name: str) -> None:
        running = next((scheduler for scheduler in self.schedulers if scheduler.running), None)
        if running is not None:
            running.strike(name)

    def _uuid(self) -> str:
        return str(uuid.UUID(int=self.world.random.getrandbits(128), version=4))
