"""The shell scripts, run, with stand-ins for srun, scontrol and gcloud that write down how they are called."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffusion_jax.launching.job import Job
from diffusion_jax.launching.render import Slurm, TpuVm

AWKWARD = ("--config=c.py", "--workdir=/runs/a b", '--config.text=it\'s "$HOME" $(x) `y` \\ #é %q')
JOB = Job(name="a-job", arguments=AWKWARD, workdir="/runs/a b", made_by="diffusion-jax launch ...")
COMMAND = ["launch", "worker", "--", "train", *AWKWARD]
TPU = {"topology": "v5e:4x4", "project": "p", "zone": "z"}

SCRIPTS = {
    "slurm": Slurm(nodes=2, gpus=8, partition="gpu", account="a", restarts=1).render(JOB),
    "tpu_vm": TpuVm(**TPU, spot=True, bucket="b").render(JOB),
    "tpu_vm on demand": TpuVm(**TPU).render(JOB),
}


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS)
def test_shellcheck_has_nothing_to_say(text, tmp_path):
    file = tmp_path / "script.sh"
    file.write_text(text)
    assert subprocess.run(["bash", "-n", file]).returncode == 0
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is of the test extra")
    checked = subprocess.run([shellcheck, file], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def stub(folder: Path, name: str, body: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/bash\n{body}\n")
    file.chmod(0o755)


def run(tmp_path, script, *arguments, **environment):
    (tmp_path / "script").write_text(script)
    home = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"}
    command = ["bash", str(tmp_path / "script"), *arguments]
    return subprocess.run(command, env=home | environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)


@pytest.fixture
def slurm(tmp_path):
    """Runs the script with a train of this status; (its status, what train was given, whether it was queued again)."""
    (tmp_path / "bin").mkdir()
    stub(tmp_path / "bin", "srun", 'while [[ $1 == --* ]]; do shift; done; "$@"')
    stub(tmp_path / "bin", "scontrol", 'echo "$@" >"$HOME/requeued"')
    stub(tmp_path / "bin", "diffusion-jax", 'printf "%s\\n" "$@" >"$HOME/given"; exit "$STATUS"')

    def start(status, **environment):
        ran = run(tmp_path, SCRIPTS["slurm"], STATUS=str(status), SLURM_JOB_ID="7", **environment)
        queued = tmp_path / "requeued"
        again = queued.read_text() if queued.exists() else ""
        return ran.returncode, (tmp_path / "given").read_text().splitlines(), again

    return start


@pytest.mark.parametrize(
    ("status", "again"),
    [(0, False), (1, False), (2, False), (3, False), (75, True), (134, True), (137, True), (143, True)],
)
def test_slurm_queues_again_what_is_not_done(slurm, status, again):
    ended, given, queued = slurm(status)
    assert ended == status
    assert given == COMMAND
    assert queued == ("requeue 7\n" if again else "")


def test_slurm_does_not_queue_again_for_ever(slurm):
    ended, _, queued = slurm(75, SLURM_RESTART_COUNT="1")
    assert (ended, queued) == (75, "")


def test_slurm_is_asked_for_what_was_said():
    asked = [line.removeprefix("#SBATCH --") for line in SCRIPTS["slurm"].splitlines() if line.startswith("#SBATCH")]
    told = dict(line.partition("=")[::2] for line in asked)
    assert told["nodes"] == "2"
    assert told["ntasks-per-node"] == told["gpus-per-node"] == "8"  # jax gives each process of SLURM one GPU
    assert told["signal"] == "TERM@300"  # to the steps, not to this script, which must live to queue again
    assert (told["partition"], told["account"], told["open-mode"]) == ("gpu", "a", "append")
    assert "requeue" in told


GCLOUD = r"""
printf '%s\n' "$*" | head -n 1 >>"$HOME/calls"
shift 2 # compute tpus
group=$1 verb=$2
shift 2
for word; do case $word in --worker=*) worker=${word#*=} ;; --command=*) command=${word#*=} ;; esac; done
[ "$worker" = all ] && workers="0 1 2 3" || workers=$worker
case $group-$verb in
queued-resources-describe) [ -e "$HOME/state" ] || exit 1; tail -n 1 "$HOME/state" ;;
queued-resources-create) mkdir "$HOME"/worker{0,1,2,3}; echo PROVISIONING >"$HOME/state"
    (sleep 0.2; echo ACTIVE >"$HOME/state") >/dev/null & ;;
queued-resources-delete) rm -rf "$HOME"/worker? "$HOME/state" ;;
tpu-vm-scp) for w in $workers; do cp "$1" "$HOME/worker$w/source.tar.gz"; done ;;
tpu-vm-ssh)
    status=0
    for w in $workers; do (cd "$HOME/worker$w" && ALL=$HOME HOME=$PWD WORKER=$w bash -c "$command") || status=$?; done
    [ "$(cat "$HOME/state")" = ACTIVE ] || exit 255
    exit "$status"
    ;;
esac
"""


@pytest.fixture
def cloud(tmp_path):
    """Runs the script against four workers, which are folders; train is the body of a script, a worker's."""
    (tmp_path / "bin").mkdir()
    stub(tmp_path / "bin", "gcloud", GCLOUD)
    (tmp_path / "project.txt").write_text("the project")
    script = TpuVm(**TPU, spot=True, setup="cp project.txt installed", restarts=1).render(JOB)

    def start(train, *arguments):
        stub(tmp_path / "bin", "diffusion-jax", f'printf "%s\\n" "$@" >~/given; pwd; {train}')
        return run(tmp_path, script, *arguments, POLL="0.1")

    start.script = script
    return start


def calls(tmp_path):
    """What gcloud was asked, without the questions after the state."""
    said = (tmp_path / "calls").read_text().splitlines()
    return [" ".join(line.split()[2:4]) for line in said if " describe " not in line]


def test_a_slice_is_made_used_and_deleted(cloud, tmp_path):
    ran = cloud('[ -e installed ] || exit 9; cp ~/given "$ALL/given$WORKER"')
    assert ran.returncode == 0, ran.stderr
    made = ["queued-resources create", "tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh", "tpu-vm ssh"]
    assert calls(tmp_path) == [*made, "queued-resources delete"]
    for worker in range(4):
        assert (tmp_path / f"given{worker}").read_text().splitlines() == COMMAND
    assert f"{tmp_path}/worker0/source" in ran.stdout  # worker 0's own words, from the folder of the project
    assert "worker1" not in ran.stdout
    create = next(line for line in (tmp_path / "calls").read_text().splitlines() if " create " in line)
    for flag in ("--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot", "--zone=z"):
        assert flag in create.split()


def test_a_slice_that_is_preempted_is_made_again(cloud, tmp_path):
    ran = cloud(
        '[ -e "$ALL/once" ] && exit 0; [ $WORKER = 0 ] || exit 0; touch "$ALL/once"; echo SUSPENDED >"$ALL/state"'
    )
    assert ran.returncode == 0, ran.stderr
    assert calls(tmp_path).count("queued-resources create") == 2
    assert calls(tmp_path).count("queued-resources delete") == 2


@pytest.mark.parametrize(("status", "starts"), [(75, 2), (134, 2), (2, 1), (3, 1)])
def test_what_is_not_done_is_started_again_on_the_same_slice(cloud, tmp_path, status, starts):
    ran = cloud(f'echo x >>"$ALL/starts$WORKER"; exit {status}')
    assert ran.returncode == status
    assert len((tmp_path / "starts0").read_text().split()) == starts  # one restart
    assert calls(tmp_path).count("queued-resources create") == 1
    assert "queued-resources delete" not in calls(tmp_path)


def wait_for(folder, name):
    """Until each of the four workers has left its file."""
    deadline = time.monotonic() + 30
    while not all((folder / f"{name}{worker}").is_file() for worker in range(4)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_stop_asks_every_worker_to_save(cloud, tmp_path):
    train = (
        'trap \'touch "$ALL/saved$WORKER"; exit 75\' TERM; touch "$ALL/ready$WORKER"; '
        "for i in {1..600}; do sleep 0.1; done"
    )
    stub(tmp_path / "bin", "diffusion-jax", train)
    (tmp_path / "script").write_text(cloud.script)
    home = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "HOME": str(tmp_path), "POLL": "0.1"}
    started = subprocess.Popen(
        ["bash", "script"], env=home, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        wait_for(tmp_path, "ready")
        stopped = subprocess.run(["bash", "script", "stop"], env=home, cwd=tmp_path, timeout=30)
        assert stopped.returncode == 0
        assert started.wait(timeout=30) == 4
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
    assert "the slice stays" in started.stderr.read()
    wait_for(tmp_path, "saved")
    assert calls(tmp_path).count("queued-resources create") == 1  # and it was not started again


def test_a_refused_slice_ends_the_script(cloud, tmp_path):
    (tmp_path / "state").write_text("FAILED\n")
    ran = cloud("exit 0")
    assert ran.returncode == 1
    assert "the slice was refused" in ran.stderr
    assert calls(tmp_path) == []


def test_an_unknown_verb_is_told_the_known_ones(cloud):
    ran = cloud("exit 0", "fly")
    assert ran.returncode == 2
    assert "run, tail, stop or delete; got fly" in ran.stderr
