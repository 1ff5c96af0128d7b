#!/usr/bin/env bash
# shellcheck disable=SC2153 # options.sh assigns the settings by name
set -euo pipefail
shopt -s inherit_errexit

usage() {
  cat <<'END'
Trains on TPU slices of a Google Kubernetes Engine cluster, with XPK or with kubectl alone.

    launch/gke.sh SUBCOMMAND [OPTIONS] [-- ARGUMENTS OF crate_jax.main]

In this order:

    launch/gke.sh image   --image us-docker.pkg.dev/my-project/my-repository/crate-jax:1
    launch/gke.sh storage --cluster c --project p --zone z --bucket my-bucket
    launch/gke.sh run     --cluster c --project p --zone z --bucket my-bucket --name b16 \
        --tpu-type v5litepod-64 --image us-docker.pkg.dev/my-project/my-repository/crate-jax:1 -- \
        --config configs/crate/imagenet1k.py:variant=B --workdir /mnt/shared/runs/b16

Subcommands:
    image     build launch/Dockerfile and push it
    storage   let XPK mount the bucket in every workload of the cluster (once a cluster; with
              --via kubectl the pods mount it themselves)
    run       submit the run as a JobSet: one job a slice, one pod a host
    status    of the JobSet and its pods
    logs      of the first pod, as they come
    collect   the workdir (--workdir, as the pods name it) to a local folder (--to)
    delete    the JobSet

A pod that ends with 75, is killed, or loses its node (spot, maintenance) makes JobSet start all pods
again, at most MAX_RESTARTS times, and the run goes on from its last checkpoint. Exit codes 1 and 2
fail the JobSet for good.

Options, each also an environment variable of the name on the right:
    --name          NAME          of the workload
    --project       PROJECT       of Google Cloud
    --zone          ZONE          of the cluster
    --cluster       CLUSTER       made by "xpk cluster create", or any with TPU node pools, JobSet
                                  and, for the bucket, the Cloud Storage FUSE CSI driver
    --tpu-type      TPU_TYPE      v4-32, v5litepod-64, v5p-128, v6e-64, ...
    --topology      TOPOLOGY      for the JobSet; default: the one of v5litepod and v6e types,
                                  while v4 and v5p ones come in several
    --slices        SLICES        default 1; more adds --config.mesh.preset=hybrid to the run, unless
                                  its arguments set config.mesh themselves
    --image         IMAGE         of the container
    --bucket        BUCKET        Cloud Storage bucket
    --mount         MOUNT         where pods see it; default: /mnt/shared
    --via           VIA           xpk or kubectl; default: xpk
    --max-restarts  MAX_RESTARTS  default: 50
    --grace         GRACE         seconds between SIGTERM and SIGKILL; default: 120
    --spot          SPOT=yes      the JobSet asks for spot nodes (XPK takes the cluster's)
    --service-account SERVICE_ACCOUNT  of Kubernetes, with access to the bucket; default: default
    --queue         QUEUE         of Kueue, for the JobSet; default: none
    --workdir       WORKDIR       for collect
    --to            TO            for collect; default: runs/NAME
    --dry-run       DRY_RUN=yes   print every command, quoted, and the JobSet; run none

Needs gcloud and kubectl, logged in; docker for image; xpk (pip install xpk) unless --via kubectl.
END
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/options.sh
source "$here/options.sh"

subcommand=${1:---help}
shift || true
case $subcommand in -h | --help | help) usage; exit 0 ;; esac

SLICES=${SLICES:-1}
MOUNT=${MOUNT:-/mnt/shared}
VIA=${VIA:-xpk}
MAX_RESTARTS=${MAX_RESTARTS:-50}
GRACE=${GRACE:-120}
SPOT=${SPOT:-no}
SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-default}
DRY_RUN=${DRY_RUN:-no}
parse_options \
  "NAME PROJECT ZONE CLUSTER TPU_TYPE TOPOLOGY SLICES IMAGE BUCKET MOUNT VIA MAX_RESTARTS GRACE
   SERVICE_ACCOUNT QUEUE WORKDIR TO" \
  "SPOT DRY_RUN" "$@"
# Uncached: what one pod writes, all see at once when they resume.
MOUNT_OPTIONS=implicit-dirs,metadata-cache:ttl-secs:0
[[ $VIA == xpk || $VIA == kubectl ]] || fail "--via $VIA is not known; write xpk or kubectl."

# ------------------------------------------------------------------------------- TPU types

accelerator() { # GKE's name of a TPU generation, the node label gke-tpu-accelerator
  case $TPU_TYPE in
    v4-*) echo tpu-v4-podslice ;;
    v5litepod-*) echo tpu-v5-lite-podslice ;;
    v5p-*) echo tpu-v5p-slice ;;
    v6e-*) echo tpu-v6e-slice ;;
    *) fail "do not know --tpu-type $TPU_TYPE; write v4-N, v5litepod-N, v5p-N or v6e-N." ;;
  esac
}

topology() {
  if [[ -n ${TOPOLOGY:-} ]]; then
    echo "$TOPOLOGY"
    return
  fi
  case $TPU_TYPE in
    v5litepod-4 | v6e-4) echo 2x2 ;;
    v5litepod-8 | v6e-8) echo 2x4 ;;
    v5litepod-16 | v6e-16) echo 4x4 ;;
    v5litepod-32 | v6e-32) echo 4x8 ;;
    v5litepod-64 | v6e-64) echo 8x8 ;;
    v5litepod-128 | v6e-128) echo 8x16 ;;
    v5litepod-256 | v6e-256) echo 16x16 ;;
    *) fail "the JobSet needs the topology of $TPU_TYPE; give --topology 4x4x4, say." ;;
  esac
}

chips() { # of a slice: the product of its topology
  local product=1 side
  for side in ${1//x/ }; do product=$((product * side)); done
  echo "$product"
}

# ------------------------------------------------------------------------------- the JobSet

quoted_list() { # as JSON, which YAML contains
  local word list=''
  for word in "$@"; do
    word=${word//\\/\\\\}
    list+=", \"${word//\"/\\\"}\""
  done
  echo "[${list#, }]"
}

jobset() {
  local kind shape count per_host
  kind=$(accelerator) || return
  shape=$(topology) || return
  count=$(chips "$shape")
  per_host=$((count < 8 ? count : 4)) # a slice of several hosts has four chips on each
  cat <<END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
$([[ -z ${QUEUE:-} ]] || printf '  labels:\n    kueue.x-k8s.io/queue-name: %s\n' "$QUEUE")
spec:
  failurePolicy:
    maxRestarts: $MAX_RESTARTS
    rules:
    - action: FailJobSet # what podFailurePolicy calls final is final
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: slice
    replicas: $SLICES
    template:
      spec:
        completionMode: Indexed
        parallelism: $((count / per_host))
        completions: $((count / per_host))
        backoffLimit: 0 # any other failure, 75 among them: JobSet starts all pods again
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes:
              containerName: train
              operator: In
              values: [1, 2]
        template:
          metadata:
            annotations:
              gke-gcsfuse/volumes: "true"
          spec:
            serviceAccountName: $SERVICE_ACCOUNT
            restartPolicy: Never
            terminationGracePeriodSeconds: $GRACE
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $kind
              cloud.google.com/gke-tpu-topology: $shape
$([[ $SPOT != yes ]] || echo '              cloud.google.com/gke-spot: "true"')
            containers:
            - name: train
              image: $IMAGE
              command: $(quoted_list python -m crate_jax.main "${arguments[@]}")
              ports:
              - containerPort: 8471 # between the slice's TPU hosts
              - containerPort: 8482 # jax.distributed's coordinator
              - containerPort: 8080 # between slices
              resources:
                limits:
                  google.com/tpu: $per_host
              volumeMounts:
              - name: shared
                mountPath: $MOUNT
            volumes:
            - name: shared
              csi:
                driver: gcsfuse.csi.storage.gke.io
                volumeAttributes:
                  bucketName: ${BUCKET#gs://}
                  mountOptions: $MOUNT_OPTIONS
END
}

# ------------------------------------------------------------------------------ subcommands

place=("--cluster=${CLUSTER:-}" "--project=${PROJECT:-}" "--zone=${ZONE:-}")

need_cluster() {
  need CLUSTER my-cluster
  need PROJECT my-project
  need ZONE us-west4-a
}

storage() {
  need_cluster
  need BUCKET my-bucket
  run xpk storage attach crate-jax "${place[@]}" --type=gcsfuse "--bucket=${BUCKET#gs://}" \
    --size=1 "--mount-point=$MOUNT" --readonly=false --auto-mount=false \
    --no-prefetch-metadata "--mount-options=$MOUNT_OPTIONS"
}

with_xpk() {
  local words
  # exec: XPK's SIGTERM goes to the shell around the command, which is then the run itself.
  printf -v words ' %q' "${arguments[@]}"
  run xpk workload create "${place[@]}" "--workload=$NAME" "--tpu-type=$TPU_TYPE" \
    "--num-slices=$SLICES" "--docker-image=$IMAGE" --storage=crate-jax \
    "--max-restarts=$MAX_RESTARTS" --restart-on-exit-codes=70,75 \
    "--termination-grace-period-seconds=$GRACE" \
    "--command=exec python -m crate_jax.main$words"
}

with_kubectl() {
  local manifest
  manifest=$(jobset) || return
  manifest=$(grep -v '^$' <<<"$manifest") # an absent option leaves an empty line
  if [[ $DRY_RUN == yes ]]; then
    printf "kubectl apply -f - <<'END'\n%s\nEND\n" "$manifest"
  else
    kubectl apply -f - <<<"$manifest"
  fi
}

submit() {
  need NAME b16
  need TPU_TYPE v5litepod-64
  need IMAGE us-docker.pkg.dev/my-project/my-repository/crate-jax:1
  need BUCKET my-bucket
  check_arguments
  if [[ $VIA == kubectl ]]; then
    with_kubectl
    return
  fi
  need_cluster
  with_xpk
  if [[ $DRY_RUN == yes ]]; then
    echo "# without XPK (--via kubectl):"
    with_kubectl || echo "# (see above)"
  fi
}

case $subcommand in
  image)
    need IMAGE us-docker.pkg.dev/my-project/my-repository/crate-jax:1
    run docker build -f "$here/Dockerfile" -t "$IMAGE" "$(dirname "$here")"
    run docker push "$IMAGE"
    ;;
  storage) storage ;;
  run) submit ;;
  status)
    need NAME b16
    run kubectl get jobset "$NAME" -o wide
    run kubectl get pods -l "jobset.sigs.k8s.io/jobset-name=$NAME" -o wide
    ;;
  logs)
    need NAME b16
    labels=jobset.sigs.k8s.io/jobset-name=$NAME,jobset.sigs.k8s.io/job-index=0
    run kubectl logs -f -l "$labels,batch.kubernetes.io/job-completion-index=0" --tail=100
    ;;
  collect)
    need NAME b16
    need BUCKET my-bucket
    need WORKDIR "$MOUNT/runs/b16"
    [[ $WORKDIR == "$MOUNT"/?* ]] || fail "--workdir $WORKDIR is not in $MOUNT (--mount)."
    run mkdir -p "${TO:-runs/$NAME}"
    run gcloud storage rsync --recursive \
      "gs://${BUCKET#gs://}${WORKDIR#"$MOUNT"}" "${TO:-runs/$NAME}"
    ;;
  delete)
    need NAME b16
    run kubectl delete jobset "$NAME"
    ;;
  *) fail "there is no subcommand '$subcommand'; see --help." ;;
esac
