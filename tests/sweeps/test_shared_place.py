"""Local places on a cluster: accepted where all nodes see them, refused before anything runs where one does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from backdoor_core.errors import ConfigError
from backdoor_core.folder import Folder
from sweeps import shared_place
from sweeps.shared_place import require_shared, unseen


def nodes(*cpus: float) -> list[dict[str, Any]]:
    """Nodes as Ray lists them; this process is on the first."""
    return [
        {"NodeID": f"n{i}", "Alive": True, "NodeManagerHostname": f"host{i}",
         "Resources": {"CPU": count} if count else {}}
        for i, count in enumerate(cpus)
    ]  # fmt: skip


def see(*blind: str) -> shared_place.Ask:
    """Asks nodes that share this filesystem, but for the blind ones."""

    def ask(asked: Sequence[str], files: Mapping[str, str]) -> Mapping[str, Sequence[str]]:
        return {node: [] if node in blind else shared_place._seen(files) for node in asked}

    return ask


def of_cluster(monkeypatch: pytest.MonkeyPatch, *cpus: float) -> None:
    class Context:
        def get_node_id(self) -> str:
            return "n0"

    monkeypatch.setattr(shared_place.ray, "nodes", lambda: nodes(*cpus))
    monkeypatch.setattr(shared_place.ray, "get_runtime_context", Context)


def test_a_node_that_does_not_see_a_place_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_cluster(monkeypatch, 4, 4, 4)
    places = [Folder(tmp_path / "store"), Folder(tmp_path / "out")]
    require_shared(places, see())
    with pytest.raises(ConfigError) as caught:
        require_shared(places, see("n2"))
    assert "host2 cannot see" in str(caught.value)
    assert str(tmp_path / "out") in str(caught.value)
    assert "s3://" in str(caught.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "probes are deleted"


def test_a_node_that_is_lost_while_it_is_asked_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_cluster(monkeypatch, 4, 4, 4)

    def ask(asked: Sequence[str], files: Mapping[str, str]) -> Mapping[str, Sequence[str]]:
        left = [dict(node, Alive=node["NodeID"] != "n2") for node in nodes(4, 4, 4)]
        monkeypatch.setattr(shared_place.ray, "nodes", lambda: left)
        return see("n2")(asked, files)

    require_shared([Folder(tmp_path)], ask)
    with pytest.raises(ConfigError, match="host1 cannot see"):
        require_shared([Folder(tmp_path)], see("n1", "n2"))


def test_a_url_and_a_cluster_of_one_machine_are_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*_: object) -> Mapping[str, Sequence[str]]:
        raise AssertionError("asked")

    of_cluster(monkeypatch, 4)
    require_shared([Folder(tmp_path)], ask)
    of_cluster(monkeypatch, 4, 0)
    require_shared([Folder(tmp_path)], ask)
    of_cluster(monkeypatch, 0, 4)
    require_shared([Folder("s3://bucket/a?region=us-east-1")], ask)


def test_a_head_that_runs_no_jobs_needs_a_place_that_workers_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_cluster(monkeypatch, 0)
    with pytest.raises(ConfigError, match="runs no jobs"):
        require_shared([Folder(tmp_path)], see())


def test_only_the_probe_itself_counts_as_seen(tmp_path: Path) -> None:
    """Another folder of the same name on a node, with other content, is another folder."""

    def ask(asked: Sequence[str], files: Mapping[str, str]) -> Mapping[str, Sequence[str]]:
        for file in files:
            Path(file).write_text("of another machine", encoding="utf-8")
        return {node: shared_place._seen(files) for node in asked}

    folder = Folder(tmp_path)
    assert unseen([folder], ["n1"], ask) == [("n1", folder)]


def test_real_nodes_answer(tmp_path: Path) -> None:
    """Two nodes of Ray on this machine: they share its folders, but for one that the second is told to miss."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        places = [Folder(tmp_path / "store"), Folder("s3://bucket/a?region=us-east-1")]
        require_shared(places)
        others = [n["NodeID"] for n in ray.nodes()]
        assert len(others) == 2
        there, nowhere = str(tmp_path / "there"), str(tmp_path / "nowhere")
        Path(there).write_text("text", encoding="utf-8")
        found = shared_place._asked(others, {there: "text", nowhere: "text"})
        assert found == {node: [there] for node in others}
    finally:
        ray.shutdown()
        cluster.shutdown()
