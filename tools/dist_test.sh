#!/usr/bin/env bash
# Evaluate on several GPUs, or in several processes without a GPU:
#   tools/dist_test.sh CONFIG CHECKPOINT NUM [flags]
# Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT, as for mmdet's script of this name.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: $0 CONFIG CHECKPOINT NUM_PROCESSES [flags of tools/test.py]" >&2
    exit 2
fi
HERE=$(cd "$(dirname "$0")" && pwd)
exec env OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" \
    "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$3" \
    "$HERE/test.py" "$1" "$2" --launcher pytorch "${@:4}"
