#!/bin/sh
# Ask a checkpoint the questions of a benchmark and score its answers, as the guide does it:
#   GPUS=8 sh evaluate.sh CHECKPOINT TASK [flags of: internvl-chat eval run --help]
# Settings, from the environment:
#   GPUS=8           processes, one a GPU; on a machine without GPUs so many processes on its CPU
#   MASTER_PORT=63669  where they meet
#   PYTHON=exe       the interpreter; unset: python
#   DRY_RUN=1        print the command and stop
# Beams are the original's: 5 under the rules of 2024, 1 above 20e9 parameters or with --dynamic.
# Exit codes: 0 done, 1 questions could not be asked, 2 unknown task, missing data, other wrong use.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
GPUS=${GPUS:-8}
MASTER_PORT=${MASTER_PORT:-63669}
PORT=${PORT:-63665}
export MASTER_PORT PORT

fail() { # problem, mend
    printf 'evaluate.sh: %s\n  fix: %s\n' "$1" "$2" >&2
    exit 2
}

# Print the arguments as one line that a shell reads back as the same words.
quoted() {
    gap=''
    for word; do
        printf '%s' "$gap"
        case $word in
            '' | *[!A-Za-z0-9_@%+=:,./-]*) printf "'%s'" "$(printf '%s\n' "$word" | sed "s/'/'\\\\''/g")" ;;
            *) printf '%s' "$word" ;;
        esac
        gap=' '
    done
}

case ${1:-} in
    '' | -h | --help)
        sed -n '2,11s/^# \{0,1\}//p' "$0"
        case ${1:-} in '') exit 2 ;; esac
        exit 0
        ;;
esac
[ $# -ge 2 ] || fail "no task is named" "GPUS=8 sh evaluate.sh CHECKPOINT TASK"
case $GPUS in '' | 0* | *[!0-9]*) fail "GPUS=$GPUS is no whole number above zero" "GPUS=1 or more" ;; esac

task=$2
# The original asks these in one process.
case $task in mme | mmvet | llava-bench) GPUS=1 ;; esac
for word; do
    case $word in --auto) GPUS=1 ;; esac
done
# In a step of srun its tasks are the processes: `srun -n 8 sh evaluate.sh CHECKPOINT TASK`.
if [ -n "${SLURM_STEP_ID:-}" ] && [ "${SLURM_NTASKS:-1}" -gt 1 ]; then
    GPUS=1
fi

# A clone brings its code along; elsewhere the installed package is used.
prefix=''
if [ -e "$root/internvl_chat/__init__.py" ]; then
    PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
    export PYTHONPATH
    prefix="PYTHONPATH=$(quoted "$PYTHONPATH") "
fi
python=${PYTHON:-python}
if [ "$GPUS" -eq 1 ]; then
    set -- "$python" -u -m internvl_chat eval run --original-beams "$@"
else
    launcher=torchrun
    [ -z "${PYTHON:-}" ] || launcher="$PYTHON -m torch.distributed.run"
    set -f # the launcher may be several words
    # shellcheck disable=SC2086
    set -- $launcher --nnodes=1 --node_rank=0 --master_addr=127.0.0.1 "--nproc_per_node=$GPUS" \
        "--master_port=$MASTER_PORT" -m internvl_chat eval run --original-beams "$@"
    set +f
fi
case ${DRY_RUN:-0} in
    0) ;;
    *)
        printf '%s%s\n' "$prefix" "$(quoted "$@")"
        exit 0
        ;;
esac
command -v "$1" >/dev/null 2>&1 ||
    fail "$1 is not on PATH" "activate the environment of requirements.txt, or set PYTHON"
[ "$GPUS" -gt 1 ] || exec "$@"

# torchrun knows no exit codes but 0 and 1: mistakes are looked for in one process first, and what the ranks
# end with is left in a file.
(
    while [ "$1" != internvl_chat ]; do shift; done
    exec "$python" -m "$@" --check-only
) || exit $?
EVAL_STATUS_FILE=$(mktemp)
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # torchrun would say so at length; the ranks share the cores themselves
export EVAL_STATUS_FILE OMP_NUM_THREADS
trap 'rm -f "$EVAL_STATUS_FILE"' EXIT
status=0
"$@" || status=$?
if [ "$status" -eq 0 ] && [ -s "$EVAL_STATUS_FILE" ]; then status=$(cat "$EVAL_STATUS_FILE"); fi
exit "$status"
