"""How a process finds its place among those of its run."""

import importlib.util
import pathlib

import jax
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.train import processes
from diffusion_jax.train.processes import Place, cluster, place

VARIABLES = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:8476", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}


def test_a_process_alone_has_no_place():
    assert place({}) is None
    assert place({}, num_processes=1, process_id=0) is None


def test_flags_come_before_variables():
    assert place(VARIABLES) == Place("10.0.0.1:8476", 4, 3)
    assert place(VARIABLES, "host:1", 2, 0) == Place("host:1", 2, 0)
    assert place(VARIABLES, process_id=0) == Place("10.0.0.1:8476", 4, 0)


@pytest.mark.parametrize(
    ("environment", "flags", "says"),
    [
        ({}, {"coordinator": "host:1"}, "go together; --num_processes .JAX_NUM_PROCESSES. is missing"),
        ({}, {"num_processes": 2}, "--process_id .JAX_PROCESS_ID. is missing"),
        ({"JAX_PROCESS_ID": "1"}, {}, "--num_processes"),
        ({}, {"num_processes": 2, "process_id": 2, "coordinator": "host:1"}, "process_id=2 of num_processes=2"),
        ({}, {"num_processes": 2, "process_id": -1, "coordinator": "host:1"}, "process_id=-1"),
        ({}, {"num_processes": 0, "process_id": 0, "coordinator": "host:1"}, "num_processes=0"),
        ({}, {"num_processes": 2, "process_id": 0}, "host:port of process 0"),
        ({}, {"num_processes": 2, "process_id": 0, "coordinator": "host"}, "--coordinator='host' is the host:port"),
        (VARIABLES | {"JAX_NUM_PROCESSES": "four"}, {}, "whole numbers: .*'four'"),
    ],
)
def test_half_a_place_or_a_wrong_one_is_refused(environment, flags, says):
    with pytest.raises(UserError, match=says):
        place(environment, **flags)


SLURM = {"SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2", "JAX_PLATFORMS": "cuda"}
MPI = {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "2", "JAX_PLATFORMS": "cpu"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"JAX_PLATFORMS": "cpu"}, None),
        (SLURM, "slurm"),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        ({"SLURM_NTASKS": "2", "JAX_PLATFORMS": "cuda"}, None),  # in sbatch, before srun
        (MPI, "ompi"),
        (MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1"}, "tpu"),
        ({"MEGASCALE_NUM_SLICES": "2"}, "tpu"),
        ({"TPU_WORKER_HOSTNAMES": "t0"}, None),  # one host, and no chip in this machine
        ({"TPU_WORKER_HOSTNAMES": "t0,t1", "JAX_PLATFORMS": "cpu"}, None),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1", "TPU_SKIP_MDS_QUERY": "1"}, None),  # `plan` compiles for a machine not here
    ],
)
def test_a_scheduler_that_started_several_is_known(monkeypatch, environment, expected):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(pathlib.Path, "exists", lambda path: False)
    assert cluster(environment) == expected


def test_joining_is_told_what_was_given(monkeypatch):
    told = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: told.update(arguments))
    monkeypatch.setattr(processes.os, "environ", VARIABLES)
    processes.join(heartbeat_seconds=7)
    assert told == {
        "coordinator_address": "10.0.0.1:8476",
        "num_processes": 4,
        "process_id": 3,
        "heartbeat_timeout_seconds": 7,
    }
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: pytest.fail("joined"))
    monkeypatch.setattr(processes.os, "environ", {"JAX_PLATFORMS": "cpu"})
    processes.join()


def test_what_cannot_be_joined_is_one_sentence(monkeypatch, capsys):
    errors = [ValueError("no such\n host"), RuntimeError("DEADLINE_EXCEEDED:\n nobody there")]

    def refuse(**_):
        raise errors.pop(0)

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(UserError, match="could not join the coordinator host:1: no such host"):
        processes.join("host:1", 2, 1)
    with pytest.raises(SystemExit, match=str(processes.HANG)):  # another's lateness is no mistake: start again
        processes.join("host:1", 2, 1)
    assert (
        "could not join the coordinator host:1: DEADLINE_EXCEEDED: nobody there; start all" in capsys.readouterr().err
    )
    with pytest.raises(UserError, match="heartbeat_seconds=0"):
        processes.join("host:1", 2, 1, heartbeat_seconds=0)


def test_an_error_of_another_kind_is_not_taken_for_a_lost_process(monkeypatch):
    monkeypatch.setattr(processes.os, "_exit", lambda status: pytest.fail("left"))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(jax.errors.JaxRuntimeError), processes.leaving_with_the_others():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")


def test_a_lost_process_ends_this_one_with_75(monkeypatch, capsys):
    class Left(BaseException):
        pass

    def leave(status):
        raise Left(status)

    monkeypatch.setattr(processes.os, "_exit", leave)
    with pytest.raises(jax.errors.JaxRuntimeError), processes.leaving_with_the_others():
        raise jax.errors.JaxRuntimeError("gloo: Connection closed by peer")  # but this process is alone
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(Left, match="75"), processes.leaving_with_the_others():
        raise jax.errors.JaxRuntimeError("Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:1")
    assert capsys.readouterr().err.count("\n") == 1
