#!/usr/bin/env bash
# Train on one node of several: a process for each of its GPUs, all of which a signal reaches and whose exit code is this
# script's. torchrun and `accelerate launch` answer for themselves instead, with 1, whatever their processes say.
#
#   NUM_NODES=2 NODE_RANK=0 PROCESSES=8 MASTER_ADDR=first-node cluster/node.sh --data.shards SHARDS --run.out RUN ...
#
# MASTER_ADDR is where node 0 can be reached, at MASTER_PORT.
set -uo pipefail

if [ "$((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1]))" -lt 501 ]; then
  echo "expected bash 5.1 or newer, which can say whose exit code it has, found $BASH_VERSION; start ranks by another launcher" >&2
  exit 2
fi

: "${NUM_NODES:?expected the number of nodes, found none}" "${NODE_RANK:?expected 0 for the first node, found none}"
: "${PROCESSES:?expected the processes of this node, found none}" "${MASTER_ADDR:?expected the name of node 0, found none}"
export MASTER_ADDR MASTER_PORT=${MASTER_PORT:-29500} WORLD_SIZE=$((NUM_NODES * PROCESSES)) LOCAL_WORLD_SIZE=$PROCESSES
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(($(nproc) / PROCESSES > 0 ? $(nproc) / PROCESSES : 1))}
WAIT_S=${WAIT_S:-300}

asked=0
processes=()
stop() {
  asked=1
  [ "${#processes[@]}" -eq 0 ] || kill -TERM "${processes[@]}" 2> /dev/null || true
}
trap stop TERM INT USR1

# The name of a pod can be looked up only once it has an address.
waited=0
until getent hosts "$MASTER_ADDR" > /dev/null; do
  [ "$asked" = 0 ] || exit 143
  if [ "$waited" -ge "$WAIT_S" ]; then
    echo "node $NODE_RANK: expected $MASTER_ADDR to have an address within $WAIT_S s (WAIT_S), found none" >&2
    exit 1
  fi
  sleep 1
  waited=$((waited + 1))
done

for ((local_rank = 0; local_rank < PROCESSES; local_rank++)); do
  RANK=$((NODE_RANK * PROCESSES + local_rank)) LOCAL_RANK=$local_rank upfield train "$@" &
  processes+=($!)
done
[ "$asked" = 0 ] || stop

# 0 if all have it; of others the first that failed, whose reason the rest only follow.
code=0
for ((left = PROCESSES; left > 0; left--)); do
  finished=
  while true; do
    wait -n -p finished "${processes[@]}" && one=0 || one=$?
    # A signal interrupts the waiting: nobody has finished then.
    [ -z "${finished:-}" ] || break
  done
  [ "$code" != 0 ] || code=$one
  rest=()
  for process in "${processes[@]}"; do [ "$process" = "$finished" ] || rest+=("$process"); done
  processes=("${rest[@]}")
done
exit "$code"
