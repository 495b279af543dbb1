"""Clusters, each of which renders a `Job` as the file that the cluster takes.

Every `render` raises UserError for options that the cluster would refuse.
"""

import abc
import dataclasses
import json
import re
from importlib import resources

from diffusion_jax.errors import UserError
from diffusion_jax.launching import slices
from diffusion_jax.launching.job import MOUNT, Job, at_least, check_job, fill, needed, on_bucket, plain

INSTALL = (
    "python3 -m pip install -q --user uv && ~/.local/bin/uv venv -q --allow-existing --python 3.11 ~/venv && "
    "~/.local/bin/uv pip install -q --python ~/venv -c constraints.txt -e '.[{extra}]'"
)
"""A shell line that installs `diffusion-jax` on a bare machine, from the folder of the project."""


@dataclasses.dataclass(frozen=True)
class Cluster(abc.ABC):
    """A kind of cluster with the options of a job on it. A concrete one is a frozen dataclass."""

    @abc.abstractmethod
    def render(self, job: Job) -> str:
        """The file that starts the job."""


@dataclasses.dataclass(frozen=True)
class Slurm(Cluster):
    """SLURM, by an sbatch script."""

    nodes: int = 1
    gpus: int = 1  # a node
    cpus: int = 8  # a GPU
    time: str = "24:00:00"  # as sbatch takes it
    partition: str = ""
    account: str = ""
    setup: str = ""  # a shell line before the job, on every host
    restarts: int = 100  # at most

    def render(self, job: Job) -> str:  # noqa: D102
        check_job(job, setup=self.setup, restarts=self.restarts)
        for name, value in {"nodes": self.nodes, "gpus": self.gpus, "cpus": self.cpus}.items():
            at_least(name, value, 1)
        if not re.fullmatch(r"(\d+-)?\d+(:\d\d){0,2}", self.time):
            raise UserError(f"--time={self.time!r} is days-hours:minutes:seconds, such as 24:00:00 or 2-12:00:00")
        chosen = {
            name: value for name, value in {"partition": self.partition, "account": self.account}.items() if value
        }
        plain(**chosen)
        return _filled(
            "slurm.sbatch",
            job,
            restarts=str(self.restarts),
            nodes=str(self.nodes),
            gpus=str(self.gpus),
            cpus=str(self.cpus),
            time=self.time,
            options="\n".join(f"#SBATCH --{name}={value}" for name, value in chosen.items()),
            setup=self.setup,
            command=job.shell,
        )


@dataclasses.dataclass(frozen=True)
class TpuVm(Cluster):
    """A slice of TPU VMs, by a script around gcloud."""

    topology: str = ""  # as `machines.sides` takes it
    project: str = ""  # of Google Cloud
    zone: str = ""
    spot: bool = False
    bucket: str = ""
    setup: str = ""  # a shell line before the job, on every host
    restarts: int = 100  # at most

    def render(self, job: Job) -> str:  # noqa: D102
        check_job(job, setup=self.setup, restarts=self.restarts)
        needed("tpu_vm", topology=self.topology, project=self.project, zone=self.zone)
        plain(project=self.project, zone=self.zone)
        found = slices.tpu(self.topology)
        mount = ""
        if self.bucket:
            on_bucket(job, self.bucket)
            mount = (
                f'mountpoint -q {MOUNT} || {{ sudo mkdir -p {MOUNT} && sudo chown "$USER" {MOUNT} && '
                f"gcsfuse --implicit-dirs {self.bucket} {MOUNT}; }} || exit 1"
            )
        return _filled(
            "tpu_vm.sh",
            job,
            restarts=str(self.restarts),
            project=self.project,
            zone=self.zone,
            accelerator=found.accelerator_type,
            runtime=found.runtime,
            pricing="--spot" if self.spot else "",
            setup=self.setup or INSTALL.format(extra="tpu"),
            bucket=mount,
            command=job.shell,
        )


@dataclasses.dataclass(frozen=True)
class JobSet(Cluster):
    """GKE, by a JobSet: a pod for each host of a TPU slice, or nodes of GPUs."""

    image: str = ""  # the container
    bucket: str = ""
    topology: str = ""  # of a TPU slice, as `machines.sides` takes it
    nodes: int = 1
    gpus: int = 0  # a node
    gpu: str = ""  # their kind, such as nvidia-h100-80gb
    spot: bool = False
    service_account: str = "default"
    restarts: int = 100  # at most

    def render(self, job: Job) -> str:  # noqa: D102
        check_job(job, restarts=self.restarts)
        needed("jobset", image=self.image)
        plain(image=self.image, service_account=self.service_account)
        on_bucket(job, self.bucket)
        selector, tolerations = {}, ""
        if self.topology:
            _no_gpus(self.topology, self.nodes, self.gpus, self.gpu)
            found = slices.tpu(self.topology)
            hosts, chips, resource = found.hosts, found.chips_a_host, "google.com/tpu"
            selector = {"gke-tpu-accelerator": found.gke_accelerator, "gke-tpu-topology": found.gke_topology}
            what = f"A TPU slice {self.topology}: {hosts} hosts of {chips} chips."
        else:
            _gpus("jobset", self.nodes, self.gpus, self.gpu)
            hosts, chips, resource = self.nodes, self.gpus, "nvidia.com/gpu"
            selector = {"gke-accelerator": self.gpu}
            tolerations = "tolerations:\n  - key: nvidia.com/gpu\n    operator: Exists\n    effect: NoSchedule"
            what = f"{hosts} nodes of {chips} {self.gpu}."
        if self.spot:
            selector["gke-spot"] = "true"
        # Kubernetes expands $(NAME) in a command; $$ is a plain $.
        words = [json.dumps(word.replace("$", "$$"), ensure_ascii=False) for word in job.command]
        return _filled(
            "jobset.yaml",
            job,
            restarts=str(self.restarts),
            what=what,
            hosts=str(hosts),
            chips=str(chips),
            resource=resource,
            selector="\n".join(f'cloud.google.com/{name}: "{value}"' for name, value in selector.items()),
            tolerations=tolerations,
            image=self.image,
            service_account=self.service_account,
            command="\n".join(f"- {word}" for word in words),
            mount=MOUNT,
            bucket=self.bucket,
        )


@dataclasses.dataclass(frozen=True)
class Sky(Cluster):
    """Clouds, by a task for `sky jobs launch` of SkyPilot: a TPU slice, or nodes of GPUs."""

    bucket: str = ""
    topology: str = ""  # of a TPU slice, as `machines.sides` takes it
    nodes: int = 1
    gpus: int = 0  # a node
    gpu: str = ""  # their kind, such as H100
    spot: bool = False
    setup: str = ""  # a shell line before the job, on every host

    def render(self, job: Job) -> str:  # noqa: D102
        check_job(job, setup=self.setup)
        on_bucket(job, self.bucket)
        activate = "[ ! -e ~/venv ] || . ~/venv/bin/activate"
        if self.topology:
            _no_gpus(self.topology, self.nodes, self.gpus, self.gpu)
            found = slices.tpu(self.topology)
            extra, coordinates = "tpu", ""
            asked = f"infra: gcp\naccelerators: tpu-{found.accelerator_type}\n"
            asked += f"accelerator_args:\n  runtime_version: {found.runtime}\n  tpu_vm: true"
        else:
            _gpus("sky", self.nodes, self.gpus, self.gpu)
            extra, asked = "gpu", f"accelerators: {self.gpu}:{self.gpus}"
            coordinates = (
                'export JAX_COORDINATOR_ADDRESS="$(echo "$SKYPILOT_NODE_IPS" | head -n 1):8476"\n'
                'export JAX_NUM_PROCESSES="$SKYPILOT_NUM_NODES" JAX_PROCESS_ID="$SKYPILOT_NODE_RANK"'
            )
        return _filled(
            "sky.yaml",
            job,
            nodes=str(self.nodes),
            resources=asked,
            spot=str(self.spot).lower(),
            mount=MOUNT,
            bucket=self.bucket,
            setup=self.setup or INSTALL.format(extra=extra),
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
