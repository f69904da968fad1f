"""What a job prefers, and whether it is spread or packed: scores computed by hand, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from broker.scheduler import candidates
from broker.scheduler.backlog import Backlog, Waiting
from broker.scheduler.cluster import Cluster
from broker.scheduler.placement import Placement, Placer
from cyxwiz_tasks.capability import Capability
from cyxwiz_tasks.cli.options import _preference
from cyxwiz_tasks.errors import InvalidJob
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Priority
from tests.unit.fleet import A100, RTX_3090, T4, capability, cluster_of


def _placed(cluster: Cluster, *wishes: dict[str, Any]) -> list[Placement]:
    backlog = Backlog()
    for number, wish in enumerate(wishes):
        backlog.add(Waiting(f"job-{number}", number, Resources.parse(wish), Priority.NORMAL))
    return Placer(cluster, backlog).place(len(wishes))


def _order(placed: Placement) -> list[tuple[str, float]]:
    return [(placed.node_name, placed.score), *((runner.name, runner.score) for runner in placed.runners_up)]


def test_preferences_add_their_share_of_the_weights() -> None:
    cluster = cluster_of(
        plain=capability(T4, region="us-east"),
        eu=capability(T4, region="eu-west"),
        nvlink=capability(T4, region="us-east", labels={"nvlink": True}),
    )
    [placed] = _placed(cluster, {"gpu_memory": "7.5GB", "prefer": {"labels.nvlink=true": 2, "region=eu-*": 1}})
    # 0.4 x 1 + 0.3 x 1 + 0.2 x 7.5/15 + 0.1 x 1 = 0.9 everywhere; and 2/3, 1/3 and 0 of what is preferred
    assert [name for name, _ in _order(placed)] == ["nvlink", "eu", "plain"]
    assert [score for _, score in _order(placed)] == pytest.approx([0.9 + 2 / 3, 0.9 + 1 / 3, 0.9])
    assert placed.parts.preferred == pytest.approx(2 / 3)


@pytest.mark.parametrize("scalar_rows", [0, 1000], ids=["vectorised", "scalar"])
@pytest.mark.parametrize("shared", [True, False])
def test_preferences_count_where_each_gpu_is_looked_at(
    scalar_rows: int, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "SCALAR_ROWS", scalar_rows)
    cluster, backlog = cluster_of(a=capability(T4, RTX_3090), b=capability(RTX_3090, A100)), Backlog()
    placer = Placer(cluster, backlog)
    wish = Resources.parse({"gpu_memory": "12GB", "shared": shared, "prefer": {"node=b": 1}})
    for number in range(3):
        backlog.add(Waiting(f"job-{number}", number, wish, Priority.NORMAL))
    # One GPU after the other, as they fill up; the third of those that want a GPU for themselves must go to a.
    [*first, last] = [placed for _ in range(3) for placed in placer.place(1)]
    assert [placed.node_name for placed in first] == ["b", "b"]
    assert last.node_name == ("b" if shared else "a")
    assert last.parts.preferred == (1.0 if shared else 0.0)


def test_a_preference_that_no_node_meets_changes_nothing() -> None:
    for wish in ({"cpus": 1}, {"cpus": 1, "prefer": {"region=mars": 5}}):
        [placed] = _placed(cluster_of(gpu=capability(T4), cpu=capability()), wish)
        assert placed.node_name == "cpu"
    assert placed.parts.preferred == 0.0


def test_a_job_that_prefers_nothing_has_no_such_part() -> None:
    [placed] = _placed(cluster_of(a=capability()), {})
    assert placed.parts.preferred is None


def test_a_preferred_gpu_is_one_that_the_job_is_sure_to_get() -> None:
    # On "mixed" a job for one GPU may be given the T4; one that needs 40GB there gets the A100.
    nodes = {"mixed": capability(T4, A100), "all": capability(A100, slots=1)}
    [placed] = _placed(cluster_of(**nodes), {"gpus": 1, "prefer": {"gpu_model=A100*": 1}})
    assert (placed.node_name, placed.parts.preferred) == ("all", 1.0)
    [placed] = _placed(cluster_of(mixed=nodes["mixed"]), {"gpus": 1, "prefer": {"gpu_model=A100*": 1}})
    assert (placed.gpu_indexes, placed.parts.preferred) == ((0,), 0.0)
    wish = {"gpu_memory": "40GB", "prefer": {"gpu_model=A100*": 1}}
    [placed] = _placed(cluster_of(mixed=nodes["mixed"]), wish)
    assert (placed.gpu_indexes, placed.parts.preferred) == ((1,), 1.0)


@pytest.mark.parametrize(
    ("text", "node"),
    [
        ("gpu_memory=40GB..", capability(A100)),
        ("compute_capability>=8.6", capability(RTX_3090)),
        ("torch>=2.12", capability(T4)),
        ("cpus=32", capability(T4, cpus=32)),
        ("ram=128GB", capability(T4, ram="128GB")),
        ("disk=2TB", capability(T4, disk_free_bytes=2**41)),
        ("os=Debian*", capability(T4)),
        ("labels.rack=7|8", capability(T4, labels={"rack": 7})),
        ("node=the-one", capability(T4)),
    ],
)
def test_whatever_can_be_required_can_be_preferred(text: str, node: Capability) -> None:
    other = capability(T4, torch="1.13", os_version="Ubuntu 24.04")
    cluster = cluster_of(**{"other": other, "the-one": node})
    [placed] = _placed(cluster, {"gpus": 1, "prefer": {text: 1}})
    assert (placed.node_name, placed.parts.preferred) == ("the-one", 1.0)


def test_packed_jobs_fill_one_node_after_the_other() -> None:
    cluster = cluster_of(a=capability(slots=3), b=capability(slots=3))
    placed = _placed(cluster, *[{"placement": "pack"}] * 6)
    assert [placement.node_name for placement in placed] == ["a", "a", "a", "b", "b", "b"]
    # 0.4 x 1 + 1.3 x (1 - availability) + 0.2 x 1 + 0.1 x 1, of availabilities 1, 2/3, 1/3
    assert [placement.score for placement in placed[:3]] == pytest.approx([0.7, 0.7 + 1.3 / 3, 0.7 + 2.6 / 3])
    assert placed[1].runners_up[0].score == pytest.approx(0.7)


def test_packed_jobs_take_the_node_on_which_they_leave_the_fewest_gpus() -> None:
    nodes = {"eight": capability(*[A100] * 8, slots=8), "four": capability(*[A100] * 4)}
    wish = {"gpus": 1, "placement": "pack"}
    placed = _placed(cluster_of(**nodes), *[wish] * 4, {"gpus": 8}, *[wish] * 2)
    # Both are empty, so equally available; what is left of the eight could run more.
    assert [placement.node_name for placement in placed] == ["four"] * 4 + ["eight"]
    # 0.4 + 1.3 x 1/idle + 0.2 x 8/80 + 0.1, with 4, 3, 2 and 1 idle
    expected = [0.52 + 1.3 / idle for idle in (4, 3, 2, 1)]
    assert [placement.score for placement in placed[:4]] == pytest.approx(expected)
    assert placed[0].runners_up[0].score == pytest.approx(0.52 + 1.3 / 8)
    # What shares its GPU goes by how full the node is.
    shared = {"gpu_memory": "20GB", "shared": True, "placement": "pack"}
    busy = {"node": "eight", "gpus": 4}
    assert _placed(cluster_of(**nodes), busy, shared)[1].node_name == "eight"


def test_spread_jobs_go_to_the_emptiest_node() -> None:
    # As jobs are placed by default, the better fit of "small" outweighs that "big" is emptier.
    nodes = {"small": capability(T4, T4, slots=2), "big": capability(A100, A100, slots=2)}
    busy = {"node": "small", "gpus": 1}
    for policy, expected in (("balanced", "small"), ("spread", "big")):
        _, placed = _placed(cluster_of(**nodes), busy, {"gpu_memory": "15GB", "placement": policy})
        assert placed.node_name == expected
    # 0.4 + 1.3 x 1 + 0.2 x 15/80 + 0.1; small: availability 1/2, fit 1
    assert _order(placed) == [("big", pytest.approx(1.8375)), ("small", pytest.approx(1.35))]


def test_the_policy_of_the_cluster_is_for_jobs_that_name_none() -> None:
    for policy, expected in (("pack", ["a", "a"]), ("balanced", ["a", "b"])):
        cluster = Cluster(placement=policy)  # type: ignore[arg-type]
        for name in ("a", "b"):
            cluster.upsert_node(name, name, capability(), "1")
        assert [placement.node_name for placement in _placed(cluster, {}, {})] == expected
    assert [placement.node_name for placement in _placed(Cluster(placement="pack"), {})] == []


def test_equal_preferences_are_one_shape() -> None:
    first = Resources.parse({"prefer": {"region=eu": 1, " cpus = 4": 2.0}})
    second = Resources.parse({"prefer": {"cpus=4": 2, "region=eu": 1}})
    assert first.shape == second.shape
    assert Resources.model_validate_json(first.shape) == first
    assert first.shape != Resources.parse({"prefer": {"cpus=4": 3, "region=eu": 1}}).shape


@pytest.mark.parametrize(
    ("prefer", "words"),
    [
        (["region=eu"], "says no weights: write"),
        ({"H100": 1}, '"H100" is no preference: write field=value'),
        ({"region=": 1}, "is no preference"),
        ({"colour=red": 1}, '"colour" cannot be preferred. There are gpu_memory, .*labels.NAME'),
        ({"labels.=1": 1}, "cannot be preferred"),
        ({"cpus>=8": 1}, 'only versions are compared .*Write "cpus=value"'),
        ({"cpus=many": 1}, '"cpus=many": .*integer'),
        ({"gpu_memory=much": 1}, '"gpu_memory=much": .*24GB'),
        ({"region=eu|": 1}, "empty alternative"),
        ({"region=eu": 0}, 'the weight of "region=eu" is 0: write a number above 0'),
        ({"region=eu": True}, "the weight of"),
        ({"region=eu": float("nan")}, "the weight of"),
        ({f"cpus={number}": 1 for number in range(17)}, "17 preferences are too many: 16"),
    ],
)
def test_what_cannot_be_preferred_is_refused(prefer: Any, words: str) -> None:
    with pytest.raises(InvalidJob, match=f"^resources.prefer: .*{words}"):
        Resources.parse({"gpus": 1, "prefer": prefer})


def test_a_job_without_gpus_cannot_prefer_one() -> None:
    with pytest.raises(InvalidJob, match=r'"gpu_model=A100" speaks of a GPU, and the job asks for none: set gpus=1'):
        Resources.parse({"prefer": {"gpu_model=A100": 1}})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("region=eu-*", ("region=eu-*", 1.0)),
        ("3:gpu_model=H100*", ("gpu_model=H100*", 3.0)),
        ("labels.path=a:b", ("labels.path=a:b", 1.0)),
    ],
)
def test_the_option_with_and_without_a_weight(text: str, expected: tuple[str, float]) -> None:
    assert _preference(text) == expected
