"""The bugs that `mutations` seeds: each one a mistake that somebody could make, and who must notice it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tests:
    """Test files, or single tests of them."""

    paths: tuple[str, ...]

    @property
    def name(self) -> str:
        return " ".join(self.paths)

    @property
    def command(self) -> list[str]:
        return ["pytest", *self.paths]


@dataclass(frozen=True)
class Chaos:
    """A short chaos run with these kinds of faults."""

    kinds: tuple[str, ...]
    jobs: int
    faults: int
    seconds: float

    @property
    def name(self) -> str:
        return f"chaos of {', '.join(self.kinds)}"

    @property
    def command(self) -> list[str]:
        numbers = ["--jobs", str(self.jobs), "--faults", str(self.faults), "--seconds", str(self.seconds)]
        return ["tests.chaos", *numbers, *(word for kind in self.kinds for word in ("--only", kind))]


@dataclass(frozen=True)
class Mutation:
    """`edits`: file, a text that stands there once, and what takes its place. Every catcher must notice it."""

    name: str
    edits: tuple[tuple[str, str, str], ...]
    catcher: Tests
    chaos: Chaos | None = None

    @property
    def catchers(self) -> tuple[Tests | Chaos, ...]:
        return (self.catcher,) if self.chaos is None else (self.catcher, self.chaos)


_ATTEMPTS, _LEADER, _NEW_JOBS = "db/attempts.py", "broker/scheduler/leader.py", "db/new_jobs.py"
_OF_ATTEMPTS = Tests(("tests/integration/test_db_attempts.py",))
_OF_LEADERSHIP = Tests(("tests/integration/test_db_leadership.py",))
_OF_FAULTS = Tests(("tests/integration/test_scheduler_faults.py",))
_OF_GANGS = Tests(("tests/integration/test_scheduler_gangs.py",))
_OF_JOBS = Tests(("tests/integration/test_node_jobs.py",))
_OF_PARTS = Tests(("tests/unit/test_node_parts.py",))
_OF_CHECKPOINTS = Tests(("tests/unit/test_checkpoints.py",))
_OF_DURABLE_FILES = Tests(("tests/unit/test_durable_files.py",))

MUTATIONS = (
    Mutation(
        "ends are not fenced by token",
        (
            (
                _ATTEMPTS,
                "JOIN attempts ON attempts.token = given.token AND attempts.state = ANY(:live)",
                "JOIN attempts ON attempts.token = given.token",
            ),
            (_ATTEMPTS, "AND jobs.current_token = attempts.token AND jobs.state = ANY(:live)", ""),
        ),
        _OF_ATTEMPTS,
    ),
    Mutation(
        "starts are not fenced by token",
        ((_ATTEMPTS, "AND jobs.current_token = given.token AND jobs.node_id", "AND jobs.node_id"),),
        _OF_ATTEMPTS,
    ),
    Mutation(
        "a token is used again",
        ((_ATTEMPTS, "nextval('attempt_token_seq')", "coalesce(current_token, nextval('attempt_token_seq'))"),),
        _OF_ATTEMPTS,
    ),
    Mutation(
        "an old leader may write",
        (("db/fenced.py", "if current != epoch:", "if False:"),),
        _OF_LEADERSHIP,
    ),
    Mutation(
        "two may lead",
        (("db/leadership.py", "        if is_ours:\n", "        if True:\n"),),
        _OF_LEADERSHIP,
    ),
    Mutation(
        "a job is acknowledged before it is committed",
        (
            (
                _LEADER,
                '            failpoints.hit("scheduler.before_commit")\n'
                '        failpoints.hit("scheduler.after_commit")\n        self.publish(outbox, batches)\n',
                '            self.publish(outbox, batches)\n            failpoints.hit("scheduler.before_commit")\n',
            ),
        ),
        _OF_FAULTS,
        Chaos(("scheduler_dies_before_commit",), jobs=500, faults=12, seconds=40.0),
    ),
    Mutation(
        "what a dead leader had taken is forgotten",
        (
            (
                "broker/scheduler/inbox.py",
                "do moved = moved + 1 end",
                "do moved = moved + 1 redis.call('RPOP', ARGV[number]) end",
            ),
        ),
        _OF_FAULTS,
    ),
    Mutation(
        "a message that was lost is not published again",
        (("broker/scheduler/duties/unstarted.py", "return time.monotonic() -", "return False and time.monotonic() -"),),
        _OF_FAULTS,
    ),
    Mutation(
        "a silent node is never lost",
        (
            (
                "broker/scheduler/duties/late_nodes.py",
                "if silence >= settings.lease_seconds}",
                "if silence >= 1e6}",
            ),
            ("broker/scheduler/duties/late_nodes.py", "dead = self._dead(late, silences) - lost", "dead = set[str]()"),
        ),
        Tests(("tests/integration/test_scheduler_nodes.py",)),
    ),
    Mutation(
        "a slot is given twice",
        (
            (
                "broker/scheduler/node.py",
                "        self.slots_free -= 1\n",
                "        self.slots_free -= len(self.holdings) % 2\n",
            ),
        ),
        Tests(("tests/unit/test_placement.py",)),
    ),
    Mutation(
        "a node takes messages for its earlier start",
        (
            (
                "workers/handover.py",
                "if (assignment.node, assignment.incarnation) != (node.id, node.incarnation) or node.stopping:",
                "if assignment.node != node.id or node.stopping:",
            ),
        ),
        _OF_JOBS,
    ),
    Mutation(
        "a result is shown although it was refused",
        (("workers/executor.py", "last_word = reply.committed and reply.final", "last_word = reply.final"),),
        _OF_JOBS,
    ),
    Mutation(
        "what a job leaves behind lives on",
        (
            ("workers/executor.py", "        attempt.process.end_tree()\n", ""),
            ("workers/supervise.py", "    attempt.undead = attempt.undead or attempt.process.end_tree()\n", ""),
            ("workers/pool.py", "                process.end_tree()\n", ""),
        ),
        _OF_JOBS,
    ),
    Mutation(
        "jobs inherit the agent's environment",
        (
            (
                "workers/job_environment.py",
                "    if name not in _NAMES and not name.startswith(_PREFIXES):\n        return False\n    return not",
                "    return True or not",
            ),
        ),
        _OF_JOBS,
    ),
    Mutation(
        "one idempotency key makes two jobs",
        (
            (
                _NEW_JOBS,
                "name, owner, project, idempotency_key, priority, resources, shape, envelope, decode(",
                "name, owner, project, NULL, priority, resources, shape, envelope, decode(",
            ),
        ),
        Tests(("tests/integration/test_db_jobs.py",)),
    ),
    Mutation(
        "a cancel does not overrule a retry",
        ((_ATTEMPTS, "THEN 'cancelled' ELSE job_state END AS goal", "THEN job_state ELSE job_state END AS goal"),),
        _OF_ATTEMPTS,
    ),
    Mutation(
        "a change leaves no event",
        (
            (
                _ATTEMPTS,
                "SELECT job_id, node_id, number, token, :epoch, 'assigned', 'running', 'node',",
                "SELECT job_id, node_id, number, token, :epoch, 'assigned', 'assigned', 'node',",
            ),
        ),
        _OF_ATTEMPTS,
    ),
    Mutation(
        "a checkpoint is not synced",
        (("cyxwiz_tasks/checkpoints/durable.py", "        os.fsync(descriptor)\n", "        pass\n"),),
        _OF_DURABLE_FILES,
    ),
    Mutation(
        "a damaged checkpoint is loaded",
        (("cyxwiz_tasks/checkpoints/manifest.py", "        if not whole:\n", "        if False:\n"),),
        _OF_CHECKPOINTS,
    ),
    Mutation(
        "the checkpoint before is not kept",
        (("cyxwiz_tasks/checkpoints/generations.py", "KEPT = 2", "KEPT = 1"),),
        _OF_CHECKPOINTS,
    ),
    Mutation(
        "a message that comes twice runs twice",
        (("workers/attempts.py", "if token in self._entered:", "if False:"),),
        _OF_PARTS,
    ),
    Mutation(
        "a gang is over when its first member is",
        (
            (
                "broker/scheduler/gang_members.py",
                "if all(member.ended is not None for member in gang):",
                "if any(member.ended is not None for member in gang):",
            ),
        ),
        _OF_GANGS,
    ),
    Mutation(
        "any node may end a member",
        (
            (
                "db/gangs.py",
                "AND gang_members.node_id = given.node_id\n        AND gang_members.ended_at IS NULL",
                "AND gang_members.ended_at IS NULL",
            ),
        ),
        Tests(("tests/integration/test_db_gangs.py",)),
    ),
    Mutation(
        "anybody's place is taken",
        (("broker/scheduler/preemption.py", "id not in stopping and holders[id].rank < rank)", "id not in stopping)"),),
        Tests(("tests/unit/test_preemption.py",)),
    ),
    Mutation(
        "the next leader does not know who was asked to leave",
        ((_LEADER, "            preempting.restore(tx, self.memory, self.settings)\n", ""),),
        Tests(("tests/integration/test_scheduler_preempt.py",)),
    ),
    Mutation(
        "a job's end does not wait for its checkpoint's way to the store",
        (("workers/attempt_artifacts.py", "while thread.is_alive() and not self._gives_up():", "while False:"),),
        Tests(("tests/unit/test_artifact_store.py",)),
    ),
)
