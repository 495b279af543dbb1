#!/bin/bash
# diffusion-jax launch tpu_vm --topology=v5e:4x4 --project=my-project --zone=us-west4-a --spot --bucket=my-bucket --dry-run -- train --config=configs/ddpm_cifar10.py --workdir=/runs/cifar10
# Run from the folder of the project: bash FILE [run | tail | stop | delete]
#   run     gets the slice, installs, starts every worker, follows worker 0, starts again after a preemption; deletes the
#           slice when training is done
#   tail    goes on following, after a lost connection
#   stop    saves and ends, on every worker; the slice stays, and is paid for, until delete
# shellcheck disable=SC2016 # what stands in single quotes is for the workers
set -uo pipefail

NAME=ddpm-cifar10
PROJECT=my-project
ZONE=us-west4-a
ACCELERATOR=v5litepod-16
RUNTIME=v2-alpha-tpuv5-lite
PRICING=(--spot)
RESTARTS=100
POLL=${POLL:-30} # seconds between two looks

SETUP=$(
    cat <<'END_OF_SETUP'
python3 -m pip install -q --user uv && ~/.local/bin/uv venv -q --allow-existing --python 3.11 ~/venv && ~/.local/bin/uv pip install -q --python ~/venv -c constraints.txt -e '.[tpu]'
END_OF_SETUP
)
WORKER=$(
    cat <<'END_OF_WORKER'
cd ~/source || exit 1
[ ! -e ~/venv ] || . ~/venv/bin/activate
mountpoint -q /runs || { sudo mkdir -p /runs && sudo chown "$USER" /runs && gcsfuse --implicit-dirs my-bucket /runs; } || exit 1
diffusion-jax launch worker -- train --config=configs/ddpm_cifar10.py --workdir=/runs/cifar10 &
echo $! >~/train.pid
wait $!
echo $? >~/train.status
END_OF_WORKER
)

tpus() { gcloud compute tpus "$@" --project="$PROJECT" --zone="$ZONE" --quiet; }

on() { tpus tpu-vm ssh "$NAME" --worker="$1" --command="$2"; }

state() { tpus queued-resources describe "$NAME" --format='value(state.state)' 2>/dev/null || echo NONE; }

delete() { tpus queued-resources delete "$NAME" --force; }

create() {
    while :; do
        case $(state) in
        ACTIVE) return 0 ;;
        NONE)
            tpus queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$ACCELERATOR" \
                --runtime-version="$RUNTIME" ${PRICING[@]+"${PRICING[@]}"} || return 1
            ;;
        SUSPENDED) delete || return 1 ;; # preempted: asked for anew
        FAILED)
            echo "$NAME: the slice was refused; $0 delete, and see gcloud compute tpus queued-resources describe" >&2
            return 1
            ;;
        *) sleep "$POLL" ;;
        esac
    done
}

install() {
    local archive
    archive=$(mktemp) || return 1
    tar czf "$archive" --exclude=.git --exclude=.venv --exclude=runs . &&
        tpus tpu-vm scp "$archive" "$NAME:source.tar.gz" --worker=all &&
        on all "mkdir -p source && tar xzf source.tar.gz -C source && cd source && $SETUP"
    local status=$?
    rm -f "$archive"
    return "$status"
}

start() {
    local quoted
    printf -v quoted %q "$WORKER"
    # What is left of a run whose worker 0 has ended goes first: two would write the same checkpoints.
    on all "[ ! -e train.pid ] || kill -KILL \$(cat train.pid) 2>/dev/null; rm -f train.pid train.status train.stop
        nohup bash -c $quoted >train.log 2>&1 </dev/null &"
}

# Ends with the status of worker 0's training; 4 where it was told to stop, 255 where the connection is lost before.
follow() {
    on 0 'until [ -s train.pid ]; do sleep 1; done
        tail -n +1 -F --pid="$(cat train.pid)" train.log
        until [ -s train.status ]; do sleep 1; done
        [ ! -e train.stop ] || exit 4
        exit "$(cat train.status)"'
}

train() {
    local started=$1 attempt=0 status
    while :; do
        if [ "$(state)" != ACTIVE ]; then
            create || return 1
            started=
        fi
        if [ -z "$started" ]; then
            if ! { install && start; }; then
                [ "$(state)" != ACTIVE ] || return 1
                continue # preempted meanwhile
            fi
            started=1
        fi
        follow
        status=$?
        case $status in
        0)
            delete
            return
            ;;
        1 | 2 | 3 | 4)
            echo "status $status: not started again; the slice stays, and is paid for, until: $0 delete" >&2
            return "$status"
            ;;
        255) sleep "$POLL" ;; # preempted, or only the connection
        *)
            attempt=$((attempt + 1))
            [ "$attempt" -le "$RESTARTS" ] || return "$status"
            started=
            ;;
        esac
    done
}

case ${1:-run} in
run) train "" ;;
tail) train 1 ;;
stop) on all 'touch train.stop; kill -TERM "$(cat train.pid)"' ;;
delete) delete ;;
*)
    echo "$0: run, tail, stop or delete; got $1" >&2
    exit 2
    ;;
esac
