#!/usr/bin/env bash
# Train with one process per GPU, or on a machine without GPUs with several on the CPU.
set -euo pipefail
if [ $# -lt 2 ]; then
    cat >&2 <<EOF
usage: $0 CONFIG GPUS [arguments of tools/train.py]
environment: NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1
             PORT=(a free one; 29500 for several nodes) PYTHON=.venv/bin/python
             MAX_RESTARTS=0, after a process died; with --resume it goes on
EOF
    exit 2
fi
source "$(dirname "$0")/_launch.sh"
launch "$2" "$TOOLS/train.py" "$1" --launcher pytorch "${@:3}"
