#!/usr/bin/env bash
# Train on a Slurm cluster, one task per GPU.
set -euo pipefail
if [ $# -lt 4 ]; then
    cat >&2 <<EOF
usage: $0 PARTITION JOB_NAME CONFIG WORK_DIR [arguments of tools/train.py]
environment: GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=5 SRUN_ARGS= PYTHON=.venv/bin/python
EOF
    exit 2
fi
source "$(dirname "$0")/_launch.sh"
slurm "$1" "$2" "$TOOLS/train.py" "$3" --work-dir="$4" --launcher=slurm "${@:5}"
