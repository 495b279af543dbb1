"""A `Job` as the file that a cluster takes. Every function raises UserError for what the cluster would refuse."""

import json
import re
from importlib import resources

from diffusion_jax.errors import UserError
from diffusion_jax.launching import slices
from diffusion_jax.launching.job import MOUNT, Job, at_least, check, fill, needed, on_bucket, plain

INSTALL = (
    "python3 -m pip install -q --user uv && ~/.local/bin/uv venv -q --allow-existing --python 3.11 ~/venv && "
    "~/.local/bin/uv pip install -q --python ~/venv -c constraints.txt -e '.[{extra}]'"
)
"""What makes `diffusion-jax` run on a bare machine, from the folder of the project."""


def slurm(
    job: Job,
    *,
    nodes: int = 1,
    gpus: int = 1,
    cpus: int = 8,
    time: str = "24:00:00",
    partition: str = "",
    account: str = "",
    setup: str = "",
    restarts: int = 100,
) -> str:
    """An sbatch script: gpus a node, cpus a GPU; time as sbatch takes it."""
    check(job, setup=setup, restarts=restarts)
    for name, value in {"nodes": nodes, "gpus": gpus, "cpus": cpus}.items():
        at_least(name, value, 1)
    if not re.fullmatch(r"(\d+-)?\d+(:\d\d){0,2}", time):
        raise UserError(f"--time={time!r} is days-hours:minutes:seconds, such as 24:00:00 or 2-12:00:00")
    chosen = {name: value for name, value in {"partition": partition, "account": account}.items() if value}
    plain(**chosen)
    return _filled(
        "slurm.sbatch",
        job,
        restarts=str(restarts),
        nodes=str(nodes),
        gpus=str(gpus),
        cpus=str(cpus),
        time=time,
        options="\n".join(f"#SBATCH --{name}={value}" for name, value in chosen.items()),
        setup=setup,
        command=job.shell,
    )


def tpu_vm(
    job: Job,
    *,
    topology: str = "",
    project: str = "",
    zone: str = "",
    spot: bool = False,
    bucket: str = "",
    setup: str = "",
    restarts: int = 100,
) -> str:
    """A script around gcloud for a slice of TPU VMs, topology as `machines.sides` takes it."""
    check(job, setup=setup, restarts=restarts)
    needed("tpu_vm", topology=topology, project=project, zone=zone)
    plain(project=project, zone=zone)
    found = slices.tpu(topology)
    mount = ""
    if bucket:
        on_bucket(job, bucket)
        mount = (
            f'mountpoint -q {MOUNT} || {{ sudo mkdir -p {MOUNT} && sudo chown "$USER" {MOUNT} && '
            f"gcsfuse --implicit-dirs {bucket} {MOUNT}; }} || exit 1"
        )
    return _filled(
        "tpu_vm.sh",
        job,
        restarts=str(restarts),
        project=project,
        zone=zone,
        accelerator=found.accelerator_type,
        runtime=found.runtime,
        pricing="--spot" if spot else "",
        setup=setup or INSTALL.format(extra="tpu"),
        bucket=mount,
        command=job.shell,
    )


def jobset(
    job: Job,
    *,
    image: str = "",
    bucket: str = "",
    topology: str = "",
    nodes: int = 1,
    gpus: int = 0,
    gpu: str = "",
    spot: bool = False,
    service_account: str = "default",
    restarts: int = 100,
) -> str:
    """A JobSet for GKE: one pod a host of a TPU slice, or nodes of so many GPUs of a kind such as nvidia-h100-80gb."""
    check(job, restarts=restarts)
    needed("jobset", image=image)
    plain(image=image, service_account=service_account)
    on_bucket(job, bucket)
    selector, tolerations = {}, ""
    if topology:
        _no_gpus(topology, nodes, gpus, gpu)
        found = slices.tpu(topology)
        hosts, chips, resource = found.hosts, found.chips_a_host, "google.com/tpu"
        selector = {"gke-tpu-accelerator": found.gke_accelerator, "gke-tpu-topology": found.gke_topology}
        what = f"A TPU slice {topology}: {hosts} hosts of {chips} chips."
    else:
        _gpus("jobset", nodes, gpus, gpu)
        hosts, chips, resource = nodes, gpus, "nvidia.com/gpu"
        selector = {"gke-accelerator": gpu}
        tolerations = "tolerations:\n  - key: nvidia.com/gpu\n    operator: Exists\n    effect: NoSchedule"
        what = f"{hosts} nodes of {chips} {gpu}."
    if spot:
        selector["gke-spot"] = "true"
    # Kubernetes expands $(NAME) in a command; $$ is a plain $.
    words = [json.dumps(word.replace("$", "$$"), ensure_ascii=False) for word in job.command]
    return _filled(
        "jobset.yaml",
        job,
        restarts=str(restarts),
        what=what,
        hosts=str(hosts),
        chips=str(chips),
        resource=resource,
        selector="\n".join(f'cloud.google.com/{name}: "{value}"' for name, value in selector.items()),
        tolerations=tolerations,
        image=image,
        service_account=service_account,
        command="\n".join(f"- {word}" for word in words),
        mount=MOUNT,
        bucket=bucket,
    )


def sky(
    job: Job,
    *,
    bucket: str = "",
    topology: str = "",
    nodes: int = 1,
    gpus: int = 0,
    gpu: str = "",
    spot: bool = False,
    setup: str = "",
) -> str:
    """A task of SkyPilot, for `sky jobs launch`: a TPU slice, or nodes of so many GPUs of a kind such as H100."""
    check(job, setup=setup)
    on_bucket(job, bucket)
    activate = "[ ! -e ~/venv ] || . ~/venv/bin/activate"
    if topology:
        _no_gpus(topology, nodes, gpus, gpu)
        found = slices.tpu(topology)
        extra, coordinates = "tpu", ""
        asked = f"infra: gcp\naccelerators: tpu-{found.accelerator_type}\n"
        asked += f"accelerator_args:\n  runtime_version: {found.runtime}\n  tpu_vm: true"
    else:
        _gpus("sky", nodes, gpus, gpu)
        extra, asked = "gpu", f"accelerators: {gpu}:{gpus}"
        coordinates = (
            'export JAX_COORDINATOR_ADDRESS="$(echo "$SKYPILOT_NODE_IPS" | head -n 1):8476"\n'
            'export JAX_NUM_PROCESSES="$SKYPILOT_NUM_NODES" JAX_PROCESS_ID="$SKYPILOT_NODE_RANK"'
        )
    return _filled(
        "sky.yaml",
        job,
        nodes=str(nodes),
        resources=asked,
        spot=str(spot).lower(),
        mount=MOUNT,
        bucket=bucket,
        setup=setup or INSTALL.format(extra=extra),
        coordinates=f"{activate}\n{coordinates}",
        command=job.shell,
    )


def _gpus(target: str, nodes: int, gpus: int, gpu: str) -> None:
    if not gpu or not gpus:
        raise UserError(f"launch {target} needs --topology of a TPU slice, or --gpu=KIND and --gpus=NUMBER a node")
    at_least("nodes", nodes, 1)
    at_least("gpus", gpus, 1)
    plain(gpu=gpu)


def _no_gpus(topology: str, nodes: int, gpus: int, gpu: str) -> None:
    if gpu or gpus or nodes != 1:
        raise UserError(f"--topology={topology} says all of a TPU slice; leave --nodes, --gpus and --gpu out")


def _filled(template: str, job: Job, **values: str) -> str:
    text = resources.files("diffusion_jax.launching").joinpath("templates", template).read_text(encoding="utf-8")
    return fill(text, {"name": job.name, "made_by": job.made_by, **values})
