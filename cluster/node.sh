#!/usr/bin/env bash
# Train on one of several nodes, with one process per GPU. This script passes signals on to every process, and exits with
# the processes' exit code. torchrun and `accelerate launch` would exit with 1 for every failure of their processes.
#
#   NUM_NODES=2 NODE_RANK=0 PROCESSES=8 MASTER_ADDR=first-node cluster/node.sh --data.shards SHARDS --run.out RUN ...
#
# MASTER_ADDR is the name or address of node 0, which listens on MASTER_PORT (29500).
set -uo pipefail

if [ "$((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1]))" -lt 501 ]; then
  echo "expected bash 5.1 or newer, which can tell which process ended, found $BASH_VERSION. Install it, or start the ranks with another launcher." >&2
  exit 2
fi

: "${NUM_NODES:?not set. Set it to the number of nodes.}" "${NODE_RANK:?not set. Set it to 0 on the first node, 1 on the next.}"
: "${PROCESSES:?not set. Set it to the number of GPUs of this node.}" "${MASTER_ADDR:?not set. Set it to the name of node 0.}"
export MASTER_ADDR MASTER_PORT=${MASTER_PORT:-29500} WORLD_SIZE=$((NUM_NODES * PROCESSES)) LOCAL_WORLD_SIZE=$PROCESSES
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(($(nproc) / PROCESSES > 0 ? $(nproc) / PROCESSES : 1))}

stop_requested=0
processes=()
stop() {
  stop_requested=1
  [ "${#processes[@]}" -eq 0 ] || kill -TERM "${processes[@]}" 2> /dev/null || true
}
trap stop TERM INT USR1

for ((local_rank = 0; local_rank < PROCESSES; local_rank++)); do
  RANK=$((NODE_RANK * PROCESSES + local_rank)) LOCAL_RANK=$local_rank upfield train "$@" &
  processes+=($!)
done
[ "$stop_requested" = 0 ] || stop

# Exit with 0 if all processes did. Otherwise exit with the code of the first one that failed, because the others may only
# have failed as a consequence.
code=0
for ((left = PROCESSES; left > 0; left--)); do
  finished=
  while true; do
    wait -n -p finished "${processes[@]}" && process_code=0 || process_code=$?
    # A signal interrupts `wait` although no process has finished.
    [ -z "${finished:-}" ] || break
  done
  [ "$code" != 0 ] || code=$process_code
  rest=()
  for process in "${processes[@]}"; do [ "$process" = "$finished" ] || rest+=("$process"); done
  processes=("${rest[@]}")
done
exit "$code"
