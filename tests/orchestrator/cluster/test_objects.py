"""Sweep objects and records of the local cluster."""

from __future__ import annotations

import pytest

from orchestrator.errors import ClusterError, NotFoundError, UserError


def sweep(**spec):
    return {"kind": "Sweep", "metadata": {"name": "night"}, "spec": spec}


def test_objects_put_sweep_twice_writes_once(machine):
    cluster = machine.cluster
    assert cluster.put_sweep(sweep(lr=1.0, n=0))
    file = machine.dump / ".orch/sweeps/night.json"
    before = (file.read_bytes(), file.stat().st_mtime_ns, file.stat().st_ino)
    assert not cluster.put_sweep(sweep(lr=1, n=0.0))
    assert (file.read_bytes(), file.stat().st_mtime_ns, file.stat().st_ino) == before


@pytest.mark.parametrize("value", [True, 1.5, "1"], ids=["true is not 1", "another number", "text"])
def test_objects_put_sweep_sees_another_value(machine, value):
    machine.cluster.put_sweep(sweep(lr=1))
    assert machine.cluster.put_sweep(sweep(lr=value))
    (stored,) = machine.cluster.sweeps()
    assert stored["spec"]["lr"] == value


def test_objects_put_sweep_keeps_uid_control_and_status(machine):
    cluster = machine.cluster
    cluster.put_sweep(sweep(lr=1))
    (first,) = cluster.sweeps()
    cluster.put_control("night", lambda _: {"suspend": True})
    cluster.put_status("night", {"total": 3})
    assert not cluster.put_sweep(sweep(lr=1)), "control and status are not its user's file"
    assert cluster.put_sweep(sweep(lr=2))
    (second,) = machine.restarted().sweeps()
    assert second["metadata"]["uid"] == first["metadata"]["uid"]
    assert second["spec"] == {"lr": 2, "control": {"suspend": True}}
    assert second["status"] == {"total": 3}


def test_objects_equal_status_and_control_are_not_written(machine):
    cluster = machine.cluster
    cluster.put_sweep(sweep())
    cluster.put_control("night", lambda _: {"cancel": ["a"]})
    cluster.put_status("night", {"total": 3})
    file = machine.dump / ".orch/sweeps/night.json"
    before = file.stat().st_mtime_ns, file.stat().st_ino
    cluster.put_control("night", lambda _: {"cancel": ["a"]})
    cluster.put_status("night", {"total": 3.0})
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == before


def test_objects_status_of_no_sweep_is_not_found(machine):
    with pytest.raises(NotFoundError, match="sweep night"):
        machine.cluster.put_status("night", {})


def test_objects_first_record_wins(machine):
    cluster = machine.cluster
    assert cluster.put_record("night", "a", {"state": "done"})
    assert not cluster.put_record("night", "a", {"state": "failed"})
    assert machine.restarted().records("night") == {"a": {"state": "done"}}
    assert cluster.records("day") == {}


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", ""])
def test_objects_names_stay_in_their_folder(machine, name):
    with pytest.raises(UserError, match="plain name"):
        machine.cluster.put_record(name, "a", {})


def test_objects_damaged_file_is_named(machine):
    machine.cluster.put_sweep(sweep())
    (machine.dump / ".orch/sweeps/night.json").write_text("{")
    with pytest.raises(ClusterError, match=r"night\.json: is damaged"):
        machine.cluster.sweeps()


def test_objects_wait_returns_at_once_when_a_control_was_put(machine):
    cluster = machine.cluster
    cluster.put_sweep(sweep())
    cluster.wait(0)
    machine.restarted().put_control("night", lambda _: {"suspend": True})
    cluster.wait(3600)


def test_objects_wait_is_not_woken_by_its_own_status(machine):
    cluster = machine.cluster
    cluster.put_sweep(sweep())
    cluster.wait(0)
    cluster.put_status("night", {"total": 1})
    seen = dict(cluster._seen)
    cluster.wait(0)
    assert cluster._seen == seen
