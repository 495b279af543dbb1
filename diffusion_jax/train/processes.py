"""The processes of one run: how they find each other, and how one ends when another is lost."""

import contextlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax

from diffusion_jax.errors import UserError
from diffusion_jax.train.faults import HANG

HEARTBEAT = 20
"""Seconds without a heartbeat after which a process counts as dead and the others end. jax's default of 100 is longer
than the grace period of many clusters. A thread outside of Python sends heartbeats, so compilation does not delay
them."""

# Words in jax's errors where another process is gone: those of gloo, NCCL and the coordination service.
_LOST = re.compile(
    r"gloo|connection (closed|reset|refused)|peer|heartbeat|UNAVAILABLE|DEADLINE_EXCEEDED|NCCL|unhealthy", re.IGNORECASE
)

_LATE = re.compile(
    r"DEADLINE_EXCEEDED|UNAVAILABLE|timed? ?out", re.IGNORECASE
)  # words of an error where another process has not come


class Place(NamedTuple):
    """The place of a process among those of its run."""

    coordinator: str  # host:port on which process 0 listens
    num_processes: int
    process_id: int


def place(
    environment: Mapping[str, str],
    coordinator: str = "",
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Place | None:
    """The place of this process by the arguments or, where one is left out, by a variable of the environment.

    The variables are JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. None where nothing is given, and
    for a single process. Raises UserError where only some of the three are given, and for numbers that do not fit.
    """
    coordinator = coordinator or environment.get("JAX_COORDINATOR_ADDRESS", "")
    try:
        count = int(environment["JAX_NUM_PROCESSES"]) if num_processes is None else num_processes
        index = int(environment["JAX_PROCESS_ID"]) if process_id is None else process_id
    except KeyError as missing:
        given = [num_processes, process_id, environment.get("JAX_NUM_PROCESSES"), environment.get("JAX_PROCESS_ID")]
        if not coordinator and not any(value is not None for value in given):
            return None
        missing_one = str(missing).strip("'")
        raise UserError(
            "--coordinator, --num_processes and --process_id, or their variables, go together; "
            f"--{missing_one.removeprefix('JAX_').lower()} ({missing_one}) is missing"
        ) from None
    except ValueError as error:
        raise UserError(f"JAX_NUM_PROCESSES and JAX_PROCESS_ID are whole numbers: {error}") from None
    if count < 1 or not 0 <= index < count:
        raise UserError(
            f"process_id={index} of num_processes={count}: processes count from 0 to one below their number"
        )
    if count == 1 and not coordinator:
        return None
    if not re.fullmatch(r".+:\d{1,5}", coordinator):
        raise UserError(f"--coordinator={coordinator!r} is the host:port of process 0, such as 10.0.0.1:8476")
    return Place(coordinator, count, index)


def cluster(environment: Mapping[str, str]) -> str | None:
    """The scheduler or machine that started several processes, of those that jax knows; None for a single process.

    One of "slurm", "ompi" and "tpu", found by the variables of the environment.
    """
    if "SLURM_STEP_NODELIST" in environment and _number(environment, "SLURM_NTASKS") > 1:
        return "slurm"
    if "OMPI_MCA_orte_hnp_uri" in environment and _number(environment, "OMPI_COMM_WORLD_SIZE") > 1:
        return "ompi"
    if "TPU_SKIP_MDS_QUERY" in environment or environment.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu":
        return None
    pod = "," in environment.get("TPU_WORKER_HOSTNAMES", "") or _number(environment, "MEGASCALE_NUM_SLICES") > 1
    if importlib.util.find_spec("libtpu") and (pod or Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists()):
        return "tpu"
    return None


def join(
    coordinator: str = "",
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_seconds: int = HEARTBEAT,
) -> None:
    """Joins this process to the others of its run, if there are any. It must be called before jax starts.

    The others are found by the arguments, by the environment (`place`), or by SLURM, Open MPI or the TPU machine
    (`cluster`). Where they do not come, the process ends with status `HANG`, as it does where they are lost later.
    Raises UserError where the process cannot join for another reason, and for arguments that do not fit.
    """
    own = place(os.environ, coordinator, num_processes, process_id)
    if heartbeat_seconds < 1:
        raise UserError(f"--heartbeat_seconds={heartbeat_seconds} is at least 1")
    if jax.distributed.is_initialized() or (own is None and cluster(os.environ) is None):
        return
    # Its handler of SIGTERM would replace that of `faults.stop_on_signal`.
    jax.config.update("jax_enable_preemption_service", False)
    arguments = {} if own is None else {"coordinator_address": own.coordinator, **own._asdict()}
    arguments.pop("coordinator", None)
    try:
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=heartbeat_seconds)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        where = "the other processes" if own is None else f"the coordinator {own.coordinator}"
        said = f"this process could not join {where}: {reason}"
        if not _LATE.search(reason):
            raise UserError(said) from error
        print(f"diffusion-jax: {said}; start all of them again", file=sys.stderr, flush=True)
        raise SystemExit(HANG) from error  # no mistake of the user: the cluster starts the process again


@contextlib.contextmanager
def leaving_with_the_others() -> Iterator[None]:
    """While entered, an error of jax which says that another process is gone ends this one with status `HANG`.

    It ends at once: an orderly exit would wait for the process that is gone.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() > 1 and _LOST.search(str(error)):
            print(
                f"diffusion-jax: process {jax.process_index()} lost another process of this run, so it ends too; start "
                f"all of them again: {' '.join(str(error).split())[:300]}",
                file=sys.stderr,
                flush=True,
            )
            os._exit(HANG)
        raise


def leave(status: int) -> None:
    """Ends this process at once if it is one of several: in an orderly exit they might wait for each other."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    return int(value) if value.isdecimal() else 0
