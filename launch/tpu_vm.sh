#!/usr/bin/env bash
# shellcheck disable=SC2153 # options.sh assigns the settings by name
set -euo pipefail
shopt -s inherit_errexit

usage() {
  cat <<'END'
Trains on a TPU VM pod (or several slices), through gcloud, preemptions included.

    launch/tpu_vm.sh SUBCOMMAND [OPTIONS] [-- ARGUMENTS OF crate_jax.main]

The one that does it all, from nothing to the trained model; stop it and start it again as you like,
it goes on with what it finds:

    launch/tpu_vm.sh run --name b16 --project my-project --zone us-west4-a \
        --accelerator v5litepod-64 --spot --bucket my-bucket -- \
        --config configs/crate/imagenet1k.py:variant=B --workdir /mnt/shared/runs/b16

Subcommands:
    run       create and install where there is nothing, start the run on all workers, and watch it:
              - a worker that exits with 75 or crashes is started again by its own machine
                (launch/worker.sh), the others with it
              - a preempted TPU is deleted, created, installed, and the run goes on from its last
                checkpoint
              - exit codes 0, 1 and 2 end it, and are this command's own; so does "stop" (75)
              The TPU stays until "delete": it costs money until then.
    create    a queued resource, and wait until it is there
    install   the last commit of this repository, and an environment, on all workers
    status    of the queued resource and of the run on each worker
    logs      of one worker (--worker), as they come
    stop      SIGTERM on all workers: the run saves and ends; "run" goes on with it
    collect   the workdir (--workdir, as the workers name it) to a local folder (--to)
    delete    the queued resource and its TPU

Options, each also an environment variable of the name on the right:
    --name         NAME         of the queued resource and its TPU
    --project      PROJECT      of Google Cloud
    --zone         ZONE
    --accelerator  ACCELERATOR  v4-32, v5litepod-64, v5p-128, v6e-64, ...
    --runtime      RUNTIME      the TPU VM image; default: the accelerator's
    --spot         SPOT=yes     preemptible and cheaper; default: on demand
    --slices       SLICES       default 1; more adds --config.mesh.preset=hybrid to the run, unless
                                its arguments set config.mesh themselves
    --bucket       BUCKET       Cloud Storage bucket that all workers mount (gcsfuse)
    --nfs          NFS          instead of a bucket: HOST:/SHARE of a Filestore or other NFS server
    --mount        MOUNT        where workers mount it; default: /mnt/shared
    --workdir      WORKDIR      for collect
    --to           TO           for collect; default: runs/NAME
    --worker       WORKER       for logs; default: 0, the one that reports
    --poll         POLL         seconds between looks; default: 60
    --dry-run      DRY_RUN=yes  print every command, quoted; run none
                   CREATE_FLAGS further flags of "queued-resources create", such as
                                "--network=N --service-account=S --reserved"
                   SSH_FLAGS    further flags of "ssh" and "scp", such as "--internal-ip"

Needs gcloud, logged in, and for several workers "ssh-add ~/.ssh/google_compute_engine" beforehand.
END
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/options.sh
source "$here/options.sh"

# ---------------------------------------------------------------------------------- options

subcommand=${1:---help}
shift || true
case $subcommand in -h | --help | help) usage; exit 0 ;; esac

SPOT=${SPOT:-no}
SLICES=${SLICES:-1}
MOUNT=${MOUNT:-/mnt/shared}
WORKER=${WORKER:-0}
POLL=${POLL:-60}
DRY_RUN=${DRY_RUN:-no}
parse_options \
  "NAME PROJECT ZONE ACCELERATOR RUNTIME SLICES BUCKET NFS MOUNT WORKDIR TO WORKER POLL" \
  "SPOT DRY_RUN" "$@"

check() {
  need NAME b16
  need PROJECT my-project
  need ZONE us-west4-a
  case $subcommand in
    run | create)
      need ACCELERATOR v5litepod-64
      RUNTIME=${RUNTIME:-$(runtime)}
      ;;
  esac
  case $subcommand in
    run)
      [[ -n ${BUCKET:-}${NFS:-} ]] ||
        fail "the workers share no storage; give --bucket my-bucket or --nfs HOST:/SHARE."
      check_arguments
      ;;
    collect)
      need WORKDIR "$MOUNT/runs/b16"
      [[ $WORKDIR == "$MOUNT"/?* ]] || fail "--workdir $WORKDIR is not in $MOUNT (--mount)."
      ;;
  esac
}

runtime() { # the images for JAX: https://cloud.google.com/tpu/docs/runtimes
  case $ACCELERATOR in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    *) fail "do not know the image for $ACCELERATOR; give it with --runtime." ;;
  esac
}

# ------------------------------------------------------------------------------ the commands

place=("--project=${PROJECT:-}" "--zone=${ZONE:-}")
read -ra create_flags <<<"${CREATE_FLAGS:-}"
read -ra ssh_flags <<<"${SSH_FLAGS:-}"
queued=(gcloud compute tpus queued-resources)

on_workers() { # WORKERS COMMAND
  run "${queued[@]}" ssh "$NAME" "${place[@]}" ${ssh_flags[@]+"${ssh_flags[@]}"} \
    --node=all "--worker=$1" "--command=$2"
}

create() {
  local nodes=("--node-id=$NAME") spot=()
  if ((SLICES > 1)); then nodes=("--node-count=$SLICES" "--node-prefix=$NAME"); fi
  if [[ $SPOT == yes ]]; then spot=(--spot); fi
  run "${queued[@]}" create "$NAME" "${place[@]}" "${nodes[@]}" \
    "--accelerator-type=$ACCELERATOR" "--runtime-version=$RUNTIME" \
    --scopes=https://www.googleapis.com/auth/cloud-platform \
    ${spot[@]+"${spot[@]}"} ${create_flags[@]+"${create_flags[@]}"}
}

delete() { run "${queued[@]}" delete "$NAME" "${place[@]}" --force --quiet; }

pack() { # the last commit, once: what a preemption brings back is what was started
  local repository
  repository=$(dirname "$here")
  archive=crate-jax.tar.gz
  [[ $DRY_RUN == yes ]] || archive=$(mktemp -d)/$archive
  [[ -z $(git -C "$repository" status --porcelain 2>/dev/null) ]] ||
    say "uncommitted changes stay here; the workers get the last commit."
  run git -C "$repository" archive --format=tar.gz "--output=$archive" HEAD
}

install() { # several steps in an until: each has to say that it failed
  run "${queued[@]}" scp "$archive" "$NAME:" "${place[@]}" ${ssh_flags[@]+"${ssh_flags[@]}"} \
    --node=all --worker=all &&
    on_workers all 'rm -rf crate-jax && mkdir crate-jax && tar -xzf crate-jax.tar.gz -C crate-jax' &&
    on_workers all 'bash crate-jax/launch/worker.sh install'
}

installed() { on_workers all 'test -f crate-jax/installed' >/dev/null 2>&1; }

start() {
  local words
  printf -v words ' %q' "MOUNT=$MOUNT" "BUCKET=${BUCKET:-}" "NFS=${NFS:-}" \
    bash crate-jax/launch/worker.sh start "${arguments[@]}"
  on_workers all "env$words"
}

stop() { on_workers all 'bash crate-jax/launch/worker.sh stop'; }

collect() {
  local to=${TO:-runs/$NAME}
  run mkdir -p "$to"
  if [[ -n ${BUCKET:-} ]]; then
    run gcloud storage rsync --recursive "gs://${BUCKET#gs://}${WORKDIR#"$MOUNT"}" "$to"
  else
    run "${queued[@]}" scp --recurse "$NAME:$WORKDIR/*" "$to" "${place[@]}" \
      ${ssh_flags[@]+"${ssh_flags[@]}"}
  fi
}

# -------------------------------------------------------------------------------- watching

resource_state() { # a state of Cloud TPU's, or NONE, or UNKNOWN where gcloud does not reach it
  local answer
  if answer=$("${queued[@]}" describe "$NAME" "${place[@]}" '--format=value(state.state)' 2>&1)
  then echo "$answer"
  elif [[ $answer == *NOT_FOUND* ]]; then echo NONE
  else echo UNKNOWN
  fi
}

node_states() { # of each slice; the resource may be ACTIVE while a slice is not
  local i node
  for ((i = 0; i < SLICES; i++)); do
    node=$NAME
    if ((SLICES > 1)); then node=$NAME-$i; fi
    gcloud compute tpus tpu-vm describe "$node" "${place[@]}" '--format=value(state)' || true
  done 2>/dev/null
}

worker_states() { # one line for each worker that answers: idle, running, lost or exited CODE
  on_workers all 'bash crate-jax/launch/worker.sh status' 2>/dev/null |
    sed -n 's/^\[worker\] [^ ]* //p' || true
}

wait_until_active() { # 1: it will never be
  local state
  while :; do
    state=$(resource_state)
    case $state in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING | NONE) say "$NAME is $state."; return 1 ;;
    esac
    say "$NAME is $state; looking again in $POLL s."
    sleep "$POLL"
  done
}

bring_up() { # create what is not there, until it is installed
  until [[ $(resource_state) == ACTIVE ]]; do
    case $(resource_state) in
      NONE)
        say "creating $NAME."
        create || [[ $lost == yes ]] || fail "gcloud did not take the request for $NAME."
        ;;
      FAILED | SUSPENDED) say "deleting what is left of $NAME."; delete ;;
    esac
    wait_until_active || sleep "$POLL"
  done
  until installed || install; do
    say "$NAME cannot be installed; trying again in $POLL s."
    sleep "$POLL"
    [[ $(resource_state) == ACTIVE ]] || return 1 # preempted meanwhile
  done
}

watch() { # until the run has ended; sets exit_code, or returns 1 when the TPU is gone
  local states code
  while :; do
    states=$(worker_states)
    code=$(sed -n 's/^exited //p' <<<"$states" | sort -n | grep -v '^0$' | head -n 1 || true)
    if [[ -n $code ]]; then
      say "a worker ended with $code; stopping the others."
      stop || true
      exit_code=$code
      return 0
    fi
    if [[ -n $states ]] && ! grep -qv '^exited 0$' <<<"$states"; then
      exit_code=0
      return 0
    fi
    if grep -qE '^(idle|lost)$' <<<"$states"; then
      start || true
    elif [[ -z $states ]]; then
      if node_states | grep -qE '^(PREEMPTED|TERMINATED)$'; then delete; return 1; fi
      case $(resource_state) in
        NONE | FAILED | SUSPENDING | SUSPENDED | DELETING) return 1 ;;
      esac
      say "no worker answers; trying again in $POLL s."
    fi
    sleep "$POLL"
  done
}

run_until_done() {
  pack
  if [[ $DRY_RUN == yes ]]; then
    echo "# where there is no queued resource $NAME:"
    create
    install
    echo "# start, and watch every $POLL s:"
    start
    on_workers all 'bash crate-jax/launch/worker.sh status'
    echo "# preempted (SUSPENDED, FAILED, PREEMPTED): delete, then from the top"
    delete
    echo "# exited 1 or 2, crashed too often, or 75 after stop: end the others"
    stop
    return
  fi
  local lost=no
  until bring_up && start && watch; do
    say "$NAME was lost; bringing it back."
    lost=yes
    sleep "$POLL"
  done
  if ((exit_code == 0)); then
    say "done. collect, then delete: $NAME costs money until it is deleted."
  else
    say "ended with $exit_code; see logs. $NAME costs money until it is deleted."
  fi
  exit "$exit_code"
}

case $subcommand in
  run) check; run_until_done ;;
  create) check; create; [[ $DRY_RUN == yes ]] || wait_until_active ;;
  install) check; pack; install ;;
  status)
    check
    if [[ $DRY_RUN == yes ]]; then
      run "${queued[@]}" describe "$NAME" "${place[@]}" '--format=value(state.state)'
    else
      echo "$NAME: $(resource_state)"
    fi
    on_workers all 'bash crate-jax/launch/worker.sh status'
    ;;
  logs)
    check
    run "${queued[@]}" ssh "$NAME" "${place[@]}" ${ssh_flags[@]+"${ssh_flags[@]}"} \
      --node=0 "--worker=$WORKER" '--command=bash crate-jax/launch/worker.sh log'
    ;;
  stop) check; stop ;;
  collect) check; collect ;;
  delete) check; delete ;;
  *) fail "there is no subcommand '$subcommand'; see --help." ;;
esac
