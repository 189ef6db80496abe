#!/usr/bin/env bash
# Test on a Slurm cluster, one task per GPU.
set -euo pipefail
if [ $# -lt 4 ]; then
    cat >&2 <<EOF
usage: $0 PARTITION JOB_NAME CONFIG CHECKPOINT [arguments of tools/test.py]
environment: GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=5 SRUN_ARGS= PYTHON=.venv/bin/python
EOF
    exit 2
fi
source "$(dirname "$0")/_launch.sh"
slurm "$1" "$2" "$TOOLS/test.py" "$3" "$4" --launcher=slurm "${@:5}"
