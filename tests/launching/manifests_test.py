"""What Kubernetes and SkyPilot are given: valid by their own schemas, and the command arrives word for word."""

import math
import os
import re
import subprocess

import pytest
import yaml

from diffusion_jax.errors import UserError
from diffusion_jax.launching import slices
from diffusion_jax.launching.job import Job, fill
from diffusion_jax.launching.machines import TOPOLOGIES
from diffusion_jax.launching.render import JobSet, Sky, Slurm, TpuVm

AWKWARD = ("--config=c.py", "--workdir=/runs/a b", '--config.text=it\'s "$(HOME)" $$ `x` $JAX_PROCESS_ID \\ #é')
JOB = Job(name="a-job", arguments=AWKWARD, workdir="/runs/a b", made_by="diffusion-jax launch ...")
COMMAND = ["diffusion-jax", "launch", "worker", "--", "train", *AWKWARD]

JOBSETS = {
    "tpu": {"topology": "v5e:4x4"},
    "one host": {"topology": "v6e:2x4", "spot": True},
    "gpu": {"nodes": 2, "gpus": 8, "gpu": "nvidia-h100-80gb", "spot": True},
}

# jobset.x-k8s.io/v1alpha2, the API's reference.
SPEC = {"replicatedJobs", "network", "successPolicy", "failurePolicy", "startupPolicy", "suspend", "coordinator"}
NETWORK = {"enableDNSHostnames", "subdomain", "publishNotReadyAddresses"}
ACTIONS = {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"}


def jobset(**options):
    return yaml.safe_load(JobSet(image="gcr.io/p/i:1", bucket="b", **options).render(JOB))


def pod_of(made):
    return made["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("options", JOBSETS.values(), ids=JOBSETS)
def test_the_job_of_a_jobset_is_one_that_kubernetes_takes(options):
    validate = pytest.importorskip("kubernetes_validate", reason="of the test extra")
    made = jobset(**options)
    template = made["spec"]["replicatedJobs"][0]["template"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **template}
    validate.validate(job, "1.32", strict=True)
    job["spec"]["template"]["spec"]["containers"][0]["imge"] = "x"
    with pytest.raises(validate.ValidationError):  # it does look inside
        validate.validate(job, "1.32", strict=True)


@pytest.mark.parametrize("options", JOBSETS.values(), ids=JOBSETS)
def test_a_jobset_has_what_its_own_api_has(options):
    made = jobset(**options)
    assert made["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    spec = made["spec"]
    assert set(spec) <= SPEC
    assert set(spec["network"]) <= NETWORK
    assert {rule["action"] for rule in spec["failurePolicy"]["rules"]} <= ACTIONS
    assert set(spec["replicatedJobs"][0]) <= {"name", "groupName", "template", "replicas", "dependsOn"}


def test_every_host_finds_the_first_one():
    """A pod's name is JOBSET-REPLICATEDJOB-JOB-POD.SUBDOMAIN, the subdomain by default the JobSet's name."""
    made = jobset(**JOBSETS["gpu"])
    job = made["spec"]["replicatedJobs"][0]
    env = {entry["name"]: entry for entry in pod_of(made)["containers"][0]["env"]}
    name = made["metadata"]["name"]
    assert env["JAX_COORDINATOR_ADDRESS"]["value"] == f"{name}-{job['name']}-0-0.{name}:8476"
    assert env["JAX_NUM_PROCESSES"]["value"] == str(job["template"]["spec"]["completions"]) == "2"
    assert "job-completion-index" in env["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert job["template"]["spec"]["completionMode"] == "Indexed"
    assert made["spec"]["network"]["enableDNSHostnames"] is True


def test_only_what_another_start_does_not_help_fails_a_jobset():
    made = jobset(**JOBSETS["tpu"])
    (rule,) = made["spec"]["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [1, 2, 3]  # README: the user's error, a loss that is not finite
    assert rule["onExitCodes"]["containerName"] == pod_of(made)["containers"][0]["name"]
    assert made["spec"]["replicatedJobs"][0]["template"]["spec"]["backoffLimit"] == 0
    assert pod_of(made)["restartPolicy"] == "Never"  # without which there is no pod failure policy


@pytest.mark.parametrize("name", [f"{f}:{shape}" for f, shapes in TOPOLOGIES.items() for shape in shapes])
def test_the_pods_of_a_slice_ask_for_all_its_chips(name):
    made = jobset(topology=name)
    pods = made["spec"]["replicatedJobs"][0]["template"]["spec"]["completions"]
    selector = pod_of(made)["nodeSelector"]
    chips = pod_of(made)["containers"][0]["resources"]["limits"]["google.com/tpu"]
    shape = selector["cloud.google.com/gke-tpu-topology"]
    assert pods * chips == math.prod(map(int, shape.split("x")))
    assert name.endswith(f":{shape}")


@pytest.mark.parametrize(
    ("name", "accelerator", "hosts", "chips", "gke"),
    [  # cloud.google.com/tpu/docs/v5e, /v6e, /v5p
        ("v5e:1x1", "v5litepod-1", 1, 1, "tpu-v5-lite-podslice"),
        ("v5e:2x4", "v5litepod-8", 1, 8, "tpu-v5-lite-podslice"),
        ("v5e:4x4", "v5litepod-16", 4, 4, "tpu-v5-lite-podslice"),
        ("v6e:2x4", "v6e-8", 1, 8, "tpu-v6e-slice"),
        ("v6e:16x16", "v6e-256", 64, 4, "tpu-v6e-slice"),
        ("v5p:2x2x1", "v5p-8", 1, 4, "tpu-v5p-slice"),
        ("v5p:4x4x4", "v5p-128", 16, 4, "tpu-v5p-slice"),
    ],
)
def test_a_slice_has_its_names_and_hosts(name, accelerator, hosts, chips, gke):
    found = slices.tpu(name)
    assert (found.accelerator_type, found.hosts, found.chips_a_host, found.gke_accelerator) == (
        accelerator,
        hosts,
        chips,
        gke,
    )


def expanded(word: str, variables: dict[str, str]) -> str:
    """What the kubelet makes of a word of a container's command: $(NAME) of a known name, $$ for $."""
    return re.sub(
        r"\$(\$|\((\w+)\))?",
        lambda m: "$" if m[1] == "$" else variables.get(m[2], m[0]) if m[2] else m[0],
        word,
    )


def test_no_character_of_a_command_is_kubernetes_own():
    words = pod_of(jobset(**JOBSETS["tpu"]))["containers"][0]["command"]
    assert [expanded(word, {"HOME": "/root", "JAX_PROCESS_ID": "0"}) for word in words] == COMMAND


SKY = {
    "tpu": {"topology": "v6e:4x4", "spot": True},
    "gpu": {"nodes": 2, "gpus": 8, "gpu": "H100"},
}


@pytest.mark.parametrize("options", SKY.values(), ids=SKY)
def test_skypilot_reads_its_task(options, tmp_path):
    sky = pytest.importorskip("sky", reason="of the launch-test extra, 95 packages")
    file = tmp_path / "task.yaml"
    file.write_text(Sky(bucket="a-bucket", **options).render(JOB))
    task = sky.Task.from_yaml(str(file))
    assert task.num_nodes == options.get("nodes", 1)
    (resources,) = task.resources
    assert resources.use_spot is options.get("spot", False)
    assert resources.accelerators == ({"tpu-v6e-16": 1} if "topology" in options else {"H100": 8})
    assert resources.job_recovery["recover_on_exit_codes"] == [75, 134, 137, 143]


@pytest.mark.parametrize("options", SKY.values(), ids=SKY)
def test_what_skypilot_runs_tells_each_node_its_place(options, tmp_path):
    task = yaml.safe_load(Sky(bucket="a-bucket", **options).render(JOB))
    stub = tmp_path / "diffusion-jax"
    stub.write_text('#!/bin/bash\nenv | grep ^JAX_ | sort; printf "%s\\n" "$@"; exit 75\n')
    stub.chmod(0o755)
    node = {"SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), "LC_ALL": "C.UTF-8", **node}
    ran = subprocess.run(["bash", "-c", task["run"]], env=environment, capture_output=True, text=True)
    place = ["JAX_COORDINATOR_ADDRESS=10.0.0.7:8476", "JAX_NUM_PROCESSES=2", "JAX_PROCESS_ID=1"]
    assert ran.stdout.splitlines() == (place if "gpu" in options else []) + COMMAND[1:], ran.stderr
    assert ran.returncode == 75  # which recover_on_exit_codes has
    assert task["file_mounts"]["/runs"]["name"] == "a-bucket"


def test_a_template_takes_every_value_and_no_other():
    assert fill("a {{x}}\n  {{y}}\n{{z}}\n", {"x": "1", "y": "2\n3", "z": ""}) == "a 1\n  2\n  3\n"
    with pytest.raises(KeyError, match="y"):
        fill("{{y}}", {"x": "1"})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: JobSet(bucket="b", topology="v5e:4x4").render(JOB), "launch jobset needs --image"),
        (lambda: JobSet(bucket="b", image="i j", topology="v5e:4x4").render(JOB), "--image='i j' is one word"),
        (lambda: JobSet(image="i", topology="v5e:4x4").render(JOB), "lost when it is preempted: give --bucket=NAME"),
        (lambda: JobSet(image="i", bucket="b").render(JOB), "needs --topology of a TPU slice, or --gpu=KIND"),
        (lambda: JobSet(image="i", bucket="b", topology="v9:2x2").render(JOB), "unknown topology 'v9:2x2'; known are"),
        (lambda: JobSet(image="i", bucket="b", topology="v5e:3x3").render(JOB), "unknown topology 'v5e:3x3'"),
        (lambda: Sky(bucket="b", topology="v5e:4x4", gpus=2).render(JOB), "says all of a TPU slice; leave --nodes"),
        (lambda: Sky(bucket="b", gpu="H100", gpus=1).render(Job("j", (), "runs/x", "")), "--workdir is /runs/...; got"),
        (lambda: Slurm(setup="a\nb").render(JOB), "cannot be printed"),
        (lambda: Slurm(restarts=-1).render(JOB), "--restarts=-1 is at least 0"),
        (lambda: Slurm(nodes=0).render(JOB), "--nodes=0 is at least 1"),
        (lambda: Slurm(time="a day").render(JOB), "--time='a day' is days-hours:minutes:seconds"),
        (lambda: Slurm(partition="a\n#SBATCH --x").render(JOB), "--partition="),
        (lambda: Slurm().render(Job("j", ("--a=\n",), "w", "")), "cannot be printed"),
        (lambda: Slurm().render(Job("A Job", (), "w", "")), "--name='A Job' is not at most 40 lower-case"),
        (lambda: TpuVm(topology="v5e:4x4", zone="z").render(JOB), "launch tpu_vm needs --project"),
        (lambda: TpuVm().render(JOB), "launch tpu_vm needs --topology, --project, --zone"),
    ],
)
def test_what_a_cluster_would_refuse_is_one_sentence(make, message):
    with pytest.raises(UserError) as error:
        make()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
