#!/usr/bin/env bash
#SBATCH --job-name=crate-jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --open-mode=append
#SBATCH --output=crate-jax-%j.log

set -euo pipefail

usage() {
  cat <<'END'
Trains on the GPUs of a SLURM cluster and goes on after every time limit and preemption.

    sbatch [SBATCH OPTIONS] launch/slurm.sh ARGUMENTS OF crate_jax.main
    bash launch/slurm.sh --dry-run ARGUMENTS OF crate_jax.main

For example, on four nodes of eight GPUs, with the environment that holds crate_jax activated:

    sbatch --nodes=4 --partition=gpu launch/slurm.sh \
        --config configs/crate/imagenet1k.py --workdir /shared/runs/b16

Submit from the repository's root; --workdir has to lie on a file system that all nodes share. The
options at the top of this file are defaults: whatever stands before the script's name in the
sbatch command replaces them.

Processes. One for each GPU: --ntasks-per-node equals --gpus-per-node. One for each node, which
then drives all of its GPUs: --ntasks-per-node=1 (and a larger --cpus-per-task). Don't use
--gpus-per-task: it hides a node's other GPUs from a process, and JAX, which takes the GPU with the
number of the task within the node, then finds none. JAX itself reads from SLURM who the others
are.

Before the time limit (120 seconds, --signal=B:TERM@120) and on preemption SIGTERM reaches every
process; the run saves and exits with 75, and the job is put back into the queue. What each exit
code leads to:

    0       done
    75      back into the queue, at most MAX_REQUEUES times
    1, 2    gave up, or a mistake in the config: the job fails with that code
    others  a crash: started again on the same nodes, at most MAX_CRASHES times

After a node's failure SLURM requeues the job by itself (--requeue). scancel ends it for good; the
run gets SLURM's KillWait, 30 seconds by default, to save.

Environment:
    PYTHON         the interpreter; default: python
    MAX_REQUEUES   default: 50
    MAX_CRASHES    default: 3
    END_SECONDS    once a process has ended, what the others get to end too; default: 300
END
}

say() { echo "[launch] $*" >&2; }

PYTHON=${PYTHON:-python}
MAX_REQUEUES=${MAX_REQUEUES:-50}
MAX_CRASHES=${MAX_CRASHES:-3}
END_SECONDS=${END_SECONDS:-300}

dry_run=no
case "${1:-}" in
  -h | --help) usage; exit 0 ;;
  --dry-run) dry_run=yes; shift ;;
esac

# A process that ends with 75 must not take along one that still writes the checkpoint, so that no
# bad exit kills at once (--kill-on-bad-exit=0), and one that waits for the dead must not wait for
# ever (--wait).
train=(srun --kill-on-bad-exit=0 "--wait=$END_SECONDS" --label
  "$PYTHON" -m crate_jax.main "$@")

if [[ $dry_run == yes ]]; then
  grep '^#SBATCH' "${BASH_SOURCE[0]}"
  echo "# on the first node:"
  printf '%q ' "${train[@]}"
  echo
  echo "# on exit code 75, at most $MAX_REQUEUES times:"
  # shellcheck disable=SC2016 # printed as it stands
  echo 'scontrol requeue "$SLURM_JOB_ID"'
  exit 0
fi

if [[ -z ${SLURM_JOB_ID:-} ]]; then
  say "this is no SLURM job; submit it: sbatch launch/slurm.sh --config FILE --workdir DIR"
  say "(or see --help, or --dry-run)."
  exit 2
fi
if (($# == 0)); then
  say "there is nothing to run; write sbatch launch/slurm.sh --config FILE --workdir DIR."
  exit 2
fi

# Under SLURM, JAX gives a process the one GPU that has its number within the node. A process that
# is alone on its node drives them all.
if [[ ${SLURM_NTASKS:-1} == "${SLURM_JOB_NUM_NODES:-1}" && ${SLURM_GPUS_ON_NODE:-0} -gt 1 ]]; then
  JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))
  export JAX_LOCAL_DEVICE_IDS
fi

told_to_stop=no
on_term() { # scancel's --signal goes to the tasks; a SIGTERM to srun would kill them at once
  told_to_stop=yes
  say "SIGTERM: asking the processes to save and stop."
  scancel --quiet --signal=TERM "$SLURM_JOB_ID" || true
}
trap on_term TERM

run_step() { # sets code to the highest exit code of the processes
  "${train[@]}" &
  local step=$!
  while :; do
    code=0
    wait "$step" || code=$?
    kill -0 "$step" 2>/dev/null || break # else the wait was ended by a signal
  done
}

requeue() {
  local state
  state=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/.*JobState=\([A-Z_]*\).*/\1/p')
  if [[ $state != RUNNING ]]; then # scancel, or a preemption after which SLURM requeues itself
    say "the job is $state, which is left so."
  elif ((${SLURM_RESTART_COUNT:-0} >= MAX_REQUEUES)); then
    say "requeued MAX_REQUEUES=$MAX_REQUEUES times; submit the same command again to go on."
  else
    say "back into the queue (${SLURM_RESTART_COUNT:-0} times so far)."
    scontrol requeue "$SLURM_JOB_ID"
  fi
}

crashes=0
while :; do
  run_step
  case $code in
    0) say "done."; exit 0 ;;
    1 | 2) say "exit code $code: not started again."; exit "$code" ;;
    75) requeue; exit 75 ;;
  esac
  if [[ $told_to_stop == yes ]]; then
    say "exit code $code while stopping; the run goes on from its last checkpoint."
    requeue
    exit "$code"
  fi
  crashes=$((crashes + 1))
  if ((crashes > MAX_CRASHES)); then
    say "exit code $code: crashed more than MAX_CRASHES=$MAX_CRASHES times."
    exit "$code"
  fi
  say "exit code $code: a crash; starting again ($crashes of at most $MAX_CRASHES)."
done
