#!/usr/bin/env bash
# Test with one process per GPU, or on a machine without GPUs with several on the CPU.
set -euo pipefail
if [ $# -lt 3 ]; then
    cat >&2 <<EOF
usage: $0 CONFIG CHECKPOINT GPUS [arguments of tools/test.py]
environment: NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1
             PORT=(a free one; 29500 for several nodes) PYTHON=.venv/bin/python
EOF
    exit 2
fi
source "$(dirname "$0")/_launch.sh"
launch "$3" "$TOOLS/test.py" "$1" "$2" --launcher pytorch "${@:4}"
