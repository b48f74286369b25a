# shellcheck shell=bash
# Functions that the batch scripts in this folder share. Each script sources this file first.
#
#   take_container "$@"       remove a leading `--container IMAGE` from the arguments, or use UPFIELD_CONTAINER
#   step NODE_OPTIONS... COMMAND...    run srun, inside the container if there is one
#   start_ray                 run Ray on every node until the job ends
#   resumable COMMAND...      run a command to its end, or until Slurm warns of the time limit; then requeue the job

STOPPED=75 # exit code of `upfield train --run.stopped_code 75`: saved, but not finished
MAX_RESTARTS=${UPFIELD_MOST_RESTARTS:-100} # ends a job whose time limit is too short for any progress
RAY_WAIT_S=${UPFIELD_RAY_WAIT_S:-300}

arguments=()
container=()
inside=()
stop_requested=0
child=
ray_step=
warning=TERM # must be USR1 for srun, which passes USR1 on to its tasks, but kills them at TERM

# Slurm warns only this shell (`--signal=B:TERM@...`).
stop_child() {
  stop_requested=1
  [ -z "$child" ] || kill -"$warning" "$child" 2> /dev/null || true
}
trap stop_child TERM USR1

say() {
  echo "$(date '+%F %T') job ${SLURM_JOB_ID}: $*" >&2
}

take_container() {
  local image=${UPFIELD_CONTAINER:-}
  if [ "${1:-}" = --container ]; then
    image=${2:?--container needs the name of an image}
    shift 2
  fi
  # shellcheck disable=SC2034 # read by the batch scripts
  arguments=("$@")
  case $image in
    '') ;;
    *.sif) inside=(apptainer exec --nv --bind "${UPFIELD_MOUNTS:-$PWD}" "$image") ;; # Apptainer's image file
    *) # Pyxis and Enroot: srun enters the container
      container=(--container-image="$image" --container-mounts="${UPFIELD_MOUNTS:-$PWD:$PWD}")
      warning=USR1
      ;;
  esac
}

# srun does not inherit the cores per task from the job. A rank that exits with 75 must not make srun kill the others.
step() {
  exec srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=0 "${container[@]}" "$@"
}

# The job number determines the ports, because several jobs may share a node. Ray opens a port for clients although none
# connects.
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
  # Each job has its own folder. Its name is short, because Unix limits the length of socket names.
  RAY_FOLDER=$(mktemp --directory "/tmp/ray-$SLURM_JOB_ID-XXXX")
  RAY_CLIENT_PORT=$(client_port_of_job)
  # The containers of a node find each other through Ray's folder.
  [ "${#container[@]}" -eq 0 ] || container[1]+=,/tmp:/tmp
  # Anyone who can reach Ray's port could run commands, so Ray requires the job's token.
  RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
  export RAY_ADDRESS RAY_FOLDER RAY_CLIENT_PORT RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
  trap stop_ray EXIT
  step --ntasks-per-node=1 --ntasks="$SLURM_JOB_NUM_NODES" bash -c "$RAY_NODE" node "${inside[@]}" &
  ray_step=$!
  if ! run_to_end on_first_node timeout "$RAY_WAIT_S" "${inside[@]}" python -c "$RAY_READY" "$SLURM_JOB_NUM_NODES"; then
    [ "$stop_requested" = 0 ] || requeue
    say "Ray did not start on $SLURM_JOB_NUM_NODES nodes within $RAY_WAIT_S s (UPFIELD_RAY_WAIT_S). The reason is above."
    exit 1
  fi
  say "Ray runs on $SLURM_JOB_NUM_NODES nodes, at $RAY_ADDRESS"
}

stop_ray() {
  [ -z "$ray_step" ] || kill -TERM "$ray_step" 2> /dev/null || true
  [ -z "$ray_step" ] || wait "$ray_step" || true
  # Every node has this folder. The step may fail, because Slurm starts no further steps of a cancelled job.
  timeout 30 srun --overlap --ntasks-per-node=1 --ntasks="$SLURM_JOB_NUM_NODES" rm -rf "$RAY_FOLDER" 2> /dev/null || true
  rm -rf "$RAY_FOLDER"
}

# This script already runs on the first node, so only a container needs a step.
on_first_node() {
  [ "${#container[@]}" -gt 0 ] || exec "$@"
  step --overlap --nodes=1 --ntasks=1 --nodelist="$SLURMD_NODENAME" "$@"
}

requeue() {
  if [ "${SLURM_RESTART_COUNT:-0}" -ge "$MAX_RESTARTS" ]; then
    say "not requeued after $MAX_RESTARTS restarts (UPFIELD_MOST_RESTARTS). Submit the job again to continue."
    exit 1
  fi
  say "stopped before it was finished; requeued after restart ${SLURM_RESTART_COUNT:-0}"
  scontrol requeue "$SLURM_JOB_ID"
  exit "$STOPPED"
}

# The command runs in the background, because bash handles no signal while it waits for a command in the foreground.
run_to_end() {
  "$@" &
  child=$!
  # A signal interrupts `wait`, which then does not return the command's exit code.
  while kill -0 "$child" 2> /dev/null; do wait "$child" || true; done
  wait "$child"
}

resumable() {
  local code
  [ "$stop_requested" = 0 ] || requeue
  run_to_end "$@" && code=0 || code=$?
  # A command that was warned continues from its last checkpoint, unless it is done (0) or its input is wrong (2).
  if [ "$code" = "$STOPPED" ] || { [ "$stop_requested" = 1 ] && [ "$code" != 0 ] && [ "$code" != 2 ]; }; then requeue; fi
  say "ended with exit code $code"
  return "$code"
}
