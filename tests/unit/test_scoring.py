"""Scores computed by hand."""

import pytest

from broker.scheduler.backlog import Backlog, Waiting
from broker.scheduler.cluster import Cluster
from broker.scheduler.demand import demand_of
from broker.scheduler.placement import Placement, Placer
from broker.scheduler.scoring import Parts, normalised
from cyxwiz_tasks.capability import Capability
from cyxwiz_tasks.errors import InvalidSettings
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Priority
from tests.unit.fleet import A100, RTX_3090, T4, capability, cluster_of


def _placed(cluster: Cluster, *wishes: dict[str, object]) -> list[Placement]:
    backlog = Backlog()
    for number, wish in enumerate(wishes):
        backlog.add(Waiting(f"job-{number}", number, Resources.parse(wish), Priority.NORMAL))
    return Placer(cluster, backlog).place(len(wishes))


def test_weights_are_normalised() -> None:
    assert normalised((40, 30, 20, 10)) == pytest.approx(Parts(0.4, 0.3, 0.2, 0.1))


@pytest.mark.parametrize("weights", [(0, 0, 0, 0), (1, 1, 1, -1)])
def test_weights_that_cannot_weigh_are_refused(weights: tuple[float, float, float, float]) -> None:
    with pytest.raises(InvalidSettings, match="score_weights"):
        Cluster(weights)


def test_score_of_an_empty_node() -> None:
    cluster = Cluster((40, 30, 20, 10))
    cluster.upsert_node("a", "a", capability(RTX_3090), "1", reputation=0.5, uptime=0.25)
    [placed] = _placed(cluster, {"gpu_memory": "12GB"})
    # everything free: availability 1; 12 of 24 GB: fit 0.5; 0.4 x 0.5 + 0.3 x 1 + 0.2 x 0.5 + 0.1 x 0.25 = 0.625
    assert placed.parts == Parts(0.5, 1.0, 0.5, 0.25)
    assert placed.score == pytest.approx(0.625)


def test_a_node_where_the_job_failed_is_the_last_choice_and_still_one() -> None:
    cluster, backlog = cluster_of(**{name: capability(slots=1) for name in "abcdef"}), Backlog()
    placer = Placer(cluster, backlog)
    for name in ("d", "b", "a", "c"):
        placer.avoided.note("job", name)
    placer.avoided.note("other", "e")
    placer.avoided.note("job", "d")
    chosen, passed_over = [], []
    for _ in "abcdef":
        backlog.add(Waiting("job", 1, Resources(), Priority.NORMAL))
        [placed] = placer.place(1)
        chosen.append(placed.node_name)
        passed_over.append([node.name for node in placed.passed_over])
        cluster.release("job")
        cluster.take(placed.node_id, f"somebody on {placed.node_id}", demand_of(Resources()), ())
    # All have equal scores, so the first in the alphabet would be taken.
    assert "".join(chosen) == "efbacd"
    assert passed_over[:3] == [["a", "b", "c", "d"], ["a", "b", "c", "d"], ["a"]]


def test_availability_is_judged_before_the_job_is_placed() -> None:
    cluster = cluster_of(a=capability(RTX_3090, RTX_3090, slots=4))
    first, second = _placed(cluster, {"gpus": 1}, {"gpus": 1})
    assert first.parts.availability == 1.0
    # 3 of 4 slots and 24 of 48 GB are free: (0.75 + 0.5) / 2
    assert second.parts.availability == pytest.approx(0.625)


def test_availability_without_gpus_is_that_of_slots() -> None:
    _, second = _placed(cluster_of(a=capability(slots=4)), {}, {})
    assert second.parts.availability == pytest.approx(0.75)


def test_a_small_job_leaves_the_big_gpu_alone() -> None:
    nodes = {"big": capability(A100), "small": capability(T4), "middle": capability(RTX_3090)}
    [placed] = _placed(cluster_of(**nodes), {"gpu_memory": "12GB"})
    # fits: 12/80 = 0.15, 12/15 = 0.8, 12/24 = 0.5; all else is equal
    assert placed.node_name == "small"
    assert placed.parts.fit == pytest.approx(0.8)
    assert [runner.name for runner in placed.runners_up] == ["middle", "big"]


def test_a_job_that_names_no_memory_goes_to_a_small_gpu() -> None:
    [placed] = _placed(cluster_of(big=capability(A100), small=capability(T4)), {"gpus": 1})
    # 8GB is taken for its size: 8/15
    assert placed.node_name == "small"
    assert placed.parts.fit == pytest.approx(8 / 15)


def test_of_one_node_the_smallest_gpus_that_do_are_taken() -> None:
    [placed] = _placed(cluster_of(a=capability(A100, T4, RTX_3090)), {"gpus": 2})
    # 15 and 24 GB: (8 + 8) / 39
    assert placed.gpu_indexes == (1, 2)
    assert placed.parts.fit == pytest.approx(16 / 39)


def test_shared_jobs_pack_the_gpu_with_least_free_memory() -> None:
    wish = {"gpu_memory": "6GB", "shared": True}
    first, second = _placed(cluster_of(a=capability(RTX_3090, RTX_3090)), wish, wish)
    assert first.gpu_indexes == second.gpu_indexes == (0,)
    # the first takes 0.93 x 6 = 5.58GB, 18.42 of 24 are free: 6 / 18.42
    assert first.parts.fit == pytest.approx(6 / 24)
    assert second.parts.fit == pytest.approx(6 / 18.42)


def test_a_job_without_gpus_keeps_off_nodes_that_have_some() -> None:
    [placed] = _placed(cluster_of(a=capability(T4), b=capability()), {"cpus": 1})
    assert placed.node_name == "b"
    assert placed.parts.fit == 1.0
    [placed] = _placed(cluster_of(a=capability(T4)), {"cpus": 1})
    assert placed.parts.fit == 0.0


@pytest.mark.parametrize("able", [capability(T4), capability()])
def test_equal_scores_go_to_the_node_that_came_first(able: Capability) -> None:
    [placed] = _placed(cluster_of(b=able, a=able, c=able), {})
    assert placed.node_name == "b"
    assert [runner.name for runner in placed.runners_up] == ["a", "c"]


def test_uptime_and_reputation_decide_between_equal_nodes() -> None:
    cluster = cluster_of(a=capability(), b=capability(), c=capability())
    cluster.set_standing("a", 0.5, 1.0)
    cluster.set_standing("b", 0.9, 0.0)
    cluster.set_standing("c", 0.9, 0.5)
    [placed] = _placed(cluster, {})
    # 0.4 x reputation + 0.1 x uptime: 0.30, 0.36, 0.41
    assert [placed.node_name, *(runner.name for runner in placed.runners_up)] == ["c", "b", "a"]
