"""What `why` and `plan` say of jobs on several nodes."""

from __future__ import annotations

from broker.scheduler.backlog import Backlog, Waiting
from broker.scheduler.explain import why
from broker.scheduler.placement import Placer
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Priority
from tests.unit.fleet import A100, T4, capability, cluster_of


def test_too_few_nodes_that_fit_are_counted_and_what_to_do_is_said():
    cluster = cluster_of(a=capability(A100), b=capability(A100), c=capability(T4))
    said = str(why(cluster, Backlog(), Resources(nodes=4, gpu_memory="40GB..")))
    assert said == (
        "It needs 4 nodes at the same time, and 2 of 3 fit (a, b): start a worker on 2 more such nodes, or ask for "
        "nodes=2."
    )


def test_busy_nodes_are_told_from_such_that_do_not_fit():
    cluster = cluster_of(**{name: capability(A100, slots=1) for name in "abcd"})
    backlog = Backlog()
    for number, name in enumerate("ab"):
        backlog.add(Waiting(f"small-{name}", number, Resources(gpus=1, node=name), Priority.NORMAL))
    Placer(cluster, backlog).place(10)
    backlog.add(Waiting("gang", 9, Resources(nodes=3, gpus=1), Priority.NORMAL))
    found = why(cluster, backlog, job_id="gang")
    assert (found.fitting, found.free) == (4, 2)
    assert str(found) == (
        "It needs 3 nodes at the same time: 4 of 4 fit (a, b, c, d), 2 with room now. The others: no free slot on 2, "
        "too few free GPUs on 2. It is the next in line: it starts once 1 more has room, all 3 together: when jobs "
        "there end, or on other such nodes: start a worker there; with nodes=2 it would fit now."
    )


def test_a_gang_that_fits_now_is_said_to():
    cluster = cluster_of(a=capability(A100), b=capability(A100))
    said = str(why(cluster, Backlog(), Resources(nodes=2, gpus=1)))
    assert said == "It needs 2 nodes at the same time: 2 of 2 fit (a, b), 2 with room now."


def test_what_no_node_can_run_is_explained_as_for_one_node():
    found = why(cluster_of(a=capability(T4)), Backlog(), Resources(nodes=2, gpu_memory="40GB.."))
    assert "at the same time" not in str(found)
    assert found.fitting == 0
