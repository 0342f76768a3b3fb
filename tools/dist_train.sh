#!/usr/bin/env bash
# Train on several GPUs, or on several processes of a machine without one: tools/dist_train.sh CONFIG NUM [flags]
# Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT, as for mmdet's script of this name.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG NUM_PROCESSES [flags of tools/train.py]" >&2
    exit 2
fi
HERE=$(cd "$(dirname "$0")" && pwd)
# `python -m torch.distributed.run` is torchrun, of the same Python as everything else. It hands these signals on to the
# ranks, which have 30 seconds then; before torch 2.9 SIGUSR1 is not among them.
export PET_SIGNALS_TO_HANDLE="${PET_SIGNALS_TO_HANDLE:-SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1}"
exec env OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" \
    "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$2" \
    "$HERE/train.py" "$1" --launcher pytorch "${@:3}"
