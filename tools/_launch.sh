# Shared by the scripts beside it, which source it: where things are, and torchrun.
TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(dirname "$TOOLS")
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    if [ -x "$ROOT/.venv/bin/python" ]; then PYTHON=$ROOT/.venv/bin/python; fi
fi
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"

# launch GPUS SCRIPT [ARGS]: torchrun with one process per GPU, or on the CPU
launch() {
    local gpus=$1 nodes=${NNODES:-1} restarts=${MAX_RESTARTS:-0} rendezvous
    shift
    if ! [[ $gpus =~ ^[1-9][0-9]*$ ]]; then
        echo "error: GPUS=$gpus is not a number of processes" >&2
        exit 2
    fi
    if ! [[ $restarts =~ ^[0-9]+$ ]]; then
        echo "error: MAX_RESTARTS=$restarts is not a number" >&2
        exit 2
    fi
    if [ "$nodes" = 1 ] && [ -z "${PORT:-}" ]; then
        # any free port, so that several jobs fit on one machine
        rendezvous=(--rdzv-backend=c10d --rdzv-endpoint=127.0.0.1:0
                    --local-addr=127.0.0.1)
    elif [ "$restarts" != 0 ]; then
        # machines that notice when another one starts again
        rendezvous=(--rdzv-backend=c10d --rdzv-id="${RUN_ID:-lfi_mmdet}"
                    --rdzv-endpoint="${MASTER_ADDR:-127.0.0.1}:${PORT:-29500}")
    else
        rendezvous=(--node-rank="${NODE_RANK:-0}"
                    --master-addr="${MASTER_ADDR:-127.0.0.1}"
                    --master-port="${PORT:-29500}")
    fi
    if [ -z "${OMP_NUM_THREADS:-}" ] && ! command -v nvidia-smi >/dev/null; then
        # the processes share the cores; torchrun would give each only one
        local cores
        cores=$(nproc)
        export OMP_NUM_THREADS=$((cores > gpus ? cores / gpus : 1))
    fi
    if [ "$restarts" != 0 ]; then
        # else a second attempt meets the addresses of the first (pytorch issue 135712)
        export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    fi
    exec "$PYTHON" "$TOOLS/_launch.py" --nnodes="$nodes" \
        --nproc-per-node="$gpus" --max-restarts="$restarts" \
        "${rendezvous[@]}" "$@"
}

# slurm PARTITION JOB_NAME SCRIPT [ARGS]: srun with one task per GPU
slurm() {
    local partition=$1 name=$2 words
    shift 2
    read -ra words <<<"${SRUN_ARGS:-}"
    set -x
    exec srun --partition="$partition" \
        --job-name="$name" \
        --gres=gpu:"${GPUS_PER_NODE:-8}" \
        --ntasks="${GPUS:-8}" \
        --ntasks-per-node="${GPUS_PER_NODE:-8}" \
        --cpus-per-task="${CPUS_PER_TASK:-5}" \
        --kill-on-bad-exit=1 \
        "${words[@]}" \
        "$PYTHON" -u "$@"
}
