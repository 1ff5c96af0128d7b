#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'END'
What launch/tpu_vm.sh calls on every worker of a TPU VM pod; it needs nothing but the worker.

    bash launch/worker.sh install                  an environment with crate_jax and jax[tpu]
    bash launch/worker.sh start ARGUMENTS          mount the shared storage, then run in the
                                                   background until it is done
    bash launch/worker.sh status                   one line: idle, running, exited CODE, or lost
    bash launch/worker.sh stop                     SIGTERM; the run saves, and exits with 75
    bash launch/worker.sh log                      the newest lines, and those that follow

The run outlives the connection that started it. What follows each exit code:

    0, 1, 2  final
    75       started again, unless stop asked for it, at most MAX_RESTARTS times
    others   a crash: started again, at most MAX_CRASHES times

A start that lasted an hour begins both counts anew.

All workers do this alike: one that crashes makes the others exit, and all meet again at the next
start.

Environment:
    MOUNT        where the shared storage appears; default: /mnt/shared
    BUCKET       mounted there by gcsfuse, if given
    NFS          mounted there, if given: HOST:/SHARE
    STATE        this script's own files; default: ~/crate-jax-state
    PYTHON       default: the interpreter of the environment that install makes
    MAX_CRASHES  default: 10
    MAX_RESTARTS default: 100; a start that waits for a lost worker in vain counts too
    DELAY        seconds before a further start; default: 5
END
}

VENV=$HOME/crate-jax-venv
STATE=${STATE:-$HOME/crate-jax-state}
MOUNT=${MOUNT:-/mnt/shared}
PYTHON=${PYTHON:-$VENV/bin/python}
MAX_CRASHES=${MAX_CRASHES:-10}
MAX_RESTARTS=${MAX_RESTARTS:-100}
DELAY=${DELAY:-5}
REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { echo "[launch] $*"; }

install_package() { # uv brings a Python where the machine's own is too old
  python3 -m pip install --quiet --user uv
  local uv=$HOME/.local/bin/uv
  "$uv" venv --quiet --allow-existing --python '>=3.11' "$VENV"
  cd "$REPOSITORY"
  "$uv" pip install --quiet --python "$VENV/bin/python" -c constraints.txt '.[tpu]'
  touch installed
  say "$(hostname): installed."
}

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc
  local repository
  repository="https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -c -s) main"
  curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] $repository" | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get -qq update
  sudo apt-get -qq install -y gcsfuse
}

mount_shared() { # uncached: what one worker writes, all see at once when they resume
  if [[ -z ${BUCKET:-}${NFS:-} ]] || mountpoint -q "$MOUNT"; then return; fi
  sudo mkdir -p "$MOUNT"
  if [[ -n ${NFS:-} ]]; then
    command -v mount.nfs >/dev/null || sudo apt-get -qq install -y nfs-common
    sudo mount -t nfs -o actimeo=1 "$NFS" "$MOUNT"
  else
    command -v gcsfuse >/dev/null || install_gcsfuse
    sudo chown "$(id -u):$(id -g)" "$MOUNT"
    gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 "${BUCKET#gs://}" "$MOUNT"
  fi
}

alive() { [[ -f $STATE/pid ]] && kill -0 "$(<"$STATE/pid")" 2>/dev/null; }

status() {
  if alive; then
    echo running
  elif [[ -f $STATE/exit_code ]]; then
    echo "exited $(<"$STATE/exit_code")"
  elif [[ -f $STATE/pid ]]; then
    echo lost # the machine was restarted under it
  else
    echo idle
  fi
}

start() {
  if alive; then return; fi
  mount_shared
  mkdir -p "$STATE"
  rm -f "$STATE/exit_code" "$STATE/stop"
  setsid nohup bash "${BASH_SOURCE[0]}" loop "$@" >>"$STATE/log" 2>&1 </dev/null &
  echo $! >"$STATE/pid"
}

loop() { # what start leaves running; its log is the run's
  local child='' code began crashes=0 restarts=0 told_to_stop=no
  on_term() {
    told_to_stop=yes
    [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true
  }
  trap on_term TERM
  cd "$REPOSITORY"
  while :; do
    say "$(hostname): starting, $(date)"
    began=$SECONDS
    "$PYTHON" -m crate_jax.main "$@" &
    child=$!
    if [[ $told_to_stop == yes ]]; then kill -TERM "$child" 2>/dev/null || true; fi
    while :; do
      code=0
      wait "$child" || code=$?
      kill -0 "$child" 2>/dev/null || break # else the wait was ended by a signal
    done
    say "$(hostname): exit code $code, $(date)"
    if [[ $told_to_stop == yes ]]; then break; fi
    if ((SECONDS - began > 3600)); then crashes=0 restarts=0; fi
    case $code in
      0 | 1 | 2) break ;;
      75)
        restarts=$((restarts + 1))
        if ((restarts > MAX_RESTARTS)); then break; fi
        ;;
      *)
        crashes=$((crashes + 1))
        if ((crashes > MAX_CRASHES)); then break; fi
        ;;
    esac
    sleep "$DELAY"
  done
  # A SIGTERM that stop did not send means that the machine goes down: then the run is not over,
  # and after a reboot its status is to be "lost".
  if [[ $told_to_stop == no || -f $STATE/stop ]]; then echo "$code" >"$STATE/exit_code"; fi
}

case "${1:---help}" in
  install) install_package ;;
  start) shift; start "$@" ;;
  status) echo "[worker] $(hostname) $(status)" ;;
  stop) if alive; then touch "$STATE/stop" && kill -TERM "$(<"$STATE/pid")"; fi ;;
  log) tail -n 100 -F "$STATE/log" ;;
  loop) shift; loop "$@" ;;
  -h | --help) usage ;;
  *) say "there is no subcommand '$1'; see --help." >&2; exit 2 ;;
esac
