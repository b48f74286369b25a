# shellcheck shell=bash
# What the batch scripts beside this file share; each reads it first.
#
#   take_container "$@"       takes a leading `--container IMAGE` (or UPFIELD_CONTAINER) off the arguments
#   step NODE_OPTIONS... COMMAND...    srun, inside the container where there is one
#   start_ray                 Ray on every node of the job, until the job ends
#   resumable COMMAND...      runs it to its end, or until Slurm warns; then the job goes back into the queue

STOPPED=75 # of `upfield train --run.stopped_code 75`: saved and left, not finished
MOST_RESTARTS=${UPFIELD_MOST_RESTARTS:-100} # so that a job whose limit is too short to get anywhere ends
RAY_WAIT_S=${UPFIELD_RAY_WAIT_S:-300}

arguments=()
container=()
inside=()
asked=0
child=
ray_step=
warning=TERM # for srun it has to be USR1: that is passed on, TERM makes it kill what it has started

# Slurm's warning comes to this shell alone (`--signal=B:TERM@...`).
stop_child() {
  asked=1
  [ -z "$child" ] || kill -"$warning" "$child" 2> /dev/null || true
}
trap stop_child TERM USR1

say() {
  echo "$(date '+%F %T') job ${SLURM_JOB_ID}: $*" >&2
}

take_container() {
  local image=${UPFIELD_CONTAINER:-}
  if [ "${1:-}" = --container ]; then
    image=${2:?--container: expected an image after it, found none}
    shift 2
  fi
  # shellcheck disable=SC2034 # read by the batch scripts
  arguments=("$@")
  case $image in
    '') ;;
    *.sif) inside=(apptainer exec --nv --bind "${UPFIELD_MOUNTS:-$PWD}" "$image") ;; # Apptainer, a file
    *) # Pyxis and Enroot: only srun knows that container
      container=(--container-image="$image" --container-mounts="${UPFIELD_MOUNTS:-$PWD:$PWD}")
      warning=USR1
      ;;
  esac
}

# srun does not take the cores per task from the job; and a rank that has left with 75 must not take the others with it.
step() {
  exec srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=0 "${container[@]}" "$@"
}

# Ports of this job's own, for several may share a node: of its processes, and of Ray's clients, which nobody is here.
port_of_job() {
  echo $((15000 + SLURM_JOB_ID % 15000))
}
client_port_of_job() {
  echo $((10000 + SLURM_JOB_ID % 5000))
}

# shellcheck disable=SC2016 # expanded by each node's shell
RAY_NODE='
  common=(--num-cpus "${SLURM_CPUS_PER_TASK:-1}" --min-worker-port 0 --max-worker-port 0 --dashboard-agent-listen-port 0 --block)
  if [ "$SLURM_PROCID" = 0 ]; then
    exec "$@" ray start --head --port "${RAY_ADDRESS##*:}" --temp-dir "$RAY_FOLDER" \
      --ray-client-server-port "$RAY_CLIENT_PORT" --include-dashboard false "${common[@]}"
  fi
  until (exec 3<> "/dev/tcp/${RAY_ADDRESS%:*}/${RAY_ADDRESS##*:}") 2> /dev/null; do sleep 1; done
  exec "$@" ray start --address "$RAY_ADDRESS" "${common[@]}"
'
RAY_READY='
import sys, time, ray
ray.init("auto", log_to_driver=False, configure_logging=False)
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[1]):
    time.sleep(1)
'

start_ray() {
  RAY_ADDRESS="$(hostname):$(port_of_job)"
  # Short, since Unix allows sockets no long names; of this job alone.
  RAY_FOLDER=$(mktemp --directory "/tmp/ray-$SLURM_JOB_ID-XXXX")
  RAY_CLIENT_PORT=$(client_port_of_job)
  # Containers of one node meet in Ray's folder.
  [ "${#container[@]}" -eq 0 ] || container[1]+=,/tmp:/tmp
  # Whoever reaches Ray's port may run anything: it lets in only who knows the job's token.
  RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
  export RAY_ADDRESS RAY_FOLDER RAY_CLIENT_PORT RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
  trap stop_ray EXIT
  step --ntasks-per-node=1 --ntasks="$SLURM_JOB_NUM_NODES" bash -c "$RAY_NODE" node "${inside[@]}" &
  ray_step=$!
  if ! to_its_end on_first_node timeout "$RAY_WAIT_S" "${inside[@]}" python -c "$RAY_READY" "$SLURM_JOB_NUM_NODES"; then
    [ "$asked" = 0 ] || requeue
    say "expected Ray on $SLURM_JOB_NUM_NODES nodes within $RAY_WAIT_S s (UPFIELD_RAY_WAIT_S); see the lines above"
    exit 1
  fi
  say "Ray runs on $SLURM_JOB_NUM_NODES nodes, at $RAY_ADDRESS"
}

stop_ray() {
  [ -z "$ray_step" ] || kill -TERM "$ray_step" 2> /dev/null || true
  [ -z "$ray_step" ] || wait "$ray_step" || true
  # Every node has one; where the job is cancelled, no step starts any more.
  timeout 30 srun --overlap --ntasks-per-node=1 --ntasks="$SLURM_JOB_NUM_NODES" rm -rf "$RAY_FOLDER" 2> /dev/null || true
  rm -rf "$RAY_FOLDER"
}

# This script runs on the first node: no step is needed, unless for the container.
on_first_node() {
  [ "${#container[@]}" -gt 0 ] || exec "$@"
  step --overlap --nodes=1 --ntasks=1 --nodelist="$SLURMD_NODENAME" "$@"
}

requeue() {
  if [ "${SLURM_RESTART_COUNT:-0}" -ge "$MOST_RESTARTS" ]; then
    say "expected at most $MOST_RESTARTS restarts (UPFIELD_MOST_RESTARTS), found one more; submit it again to go on"
    exit 1
  fi
  say "stopped before its end; back into the queue (restart ${SLURM_RESTART_COUNT:-0} is over)"
  scontrol requeue "$SLURM_JOB_ID"
  exit "$STOPPED"
}

# In the background, since bash answers no signal while it waits for a command in the foreground.
to_its_end() {
  "$@" &
  child=$!
  # A signal interrupts `wait`, whose answer is then not the command's.
  while kill -0 "$child" 2> /dev/null; do wait "$child" || true; done
  wait "$child"
}

resumable() {
  local code
  [ "$asked" = 0 ] || requeue
  to_its_end "$@" && code=0 || code=$?
  # Whatever a warned command ends with, short of "done" and "the input is wrong", it goes on from what it has saved.
  if [ "$code" = "$STOPPED" ] || { [ "$asked" = 1 ] && [ "$code" != 0 ] && [ "$code" != 2 ]; }; then requeue; fi
  say "ended with $code"
  return "$code"
}
