# shellcheck shell=bash disable=SC2153
# Read by tpu_vm.sh and gke.sh: options, the run's own arguments, and --dry-run.

say() { echo "[launch] $*" >&2; }
fail() { say "$*"; exit 2; }

# parse_options "NAMES WITH A VALUE" "NAMES WITHOUT" ARGUMENTS
# Sets NAME for --name VALUE, FLAG=yes for --flag, and arguments to what follows --.
parse_options() {
  local valued=" $1 " flags=" $2 " option name
  shift 2
  arguments=()
  while (($#)); do
    option=$1
    shift
    name=${option#--}
    name=${name//-/_}
    name=${name^^}
    if [[ $option == -- ]]; then
      arguments=("$@")
      return
    elif [[ $option == -h || $option == --help ]]; then
      usage
      exit 0
    elif [[ $option == --?* && $flags == *" $name "* ]]; then
      printf -v "$name" yes
    elif [[ $option == --?* && $valued == *" $name "* ]]; then
      (($#)) || fail "$option has no value."
      printf -v "$name" '%s' "$1"
      shift
    else
      fail "do not know what to do with '$option'; the run's own arguments come after --."
    fi
  done
}

need() { # NAME EXAMPLE: a setting without which nothing can be done
  local option=${1,,}
  [[ -n ${!1:-} ]] ||
    fail "$1 is not set; give --${option//_/-} $2 (or the environment variable $1)."
}

value_of() { # FLAG ARGUMENTS: of "FLAG value" or "FLAG=value"; the last one counts
  local flag=$1 value=''
  shift
  while (($#)); do
    case $1 in
      "$flag") value=${2:-} ;;
      "$flag="*) value=${1#*=} ;;
    esac
    shift
  done
  echo "$value"
}

check_arguments() { # the run's: they name a config, and a workdir on the shared storage
  [[ $SLICES =~ ^[1-9][0-9]*$ ]] || fail "--slices $SLICES is no count; write 1 or more."
  local workdir
  [[ -n $(value_of --config ${arguments[@]+"${arguments[@]}"}) ]] ||
    fail "there is nothing to run; end with -- --config FILE --workdir $MOUNT/runs/$NAME."
  workdir=$(value_of --workdir "${arguments[@]}")
  [[ $workdir == "$MOUNT"/?* ]] ||
    fail "--workdir '$workdir' is each worker's own disk, which the others do not see and a" \
      "preemption deletes; write --workdir $MOUNT/runs/$NAME."
  if ((SLICES > 1)) && [[ " ${arguments[*]}" != *" --config.mesh."* ]]; then
    arguments+=(--config.mesh.preset=hybrid)
  fi
}

run() { # a command that changes something; with --dry-run it is printed instead
  if [[ $DRY_RUN == yes ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
