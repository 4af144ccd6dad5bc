# shellcheck shell=sh
# The launcher: turns a recipe's settings into one srun or torchrun command and runs it.
# POSIX sh, sourced by a recipe that has set `lib` (this folder) and `recipe` (its name); the recipe then
# sets its defaults and calls `launch`.
# docs/recipes.md and docs/slurm.md describe every setting; `sh RECIPE --help` prints the short form.

: "${lib:?the recipe sets it}" "${recipe:?the recipe sets it}"

# What is shipped with the recipes is found beside the script, and named as short as it can be; every other path
# is read from where the user stands.
root=$(CDPATH='' cd -- "$lib/../.." && pwd)
if [ "$(cd "$root" && pwd -P)" = "$(pwd -P)" ]; then shipped=''; else shipped=$root/; fi

fail() { # problem, mend
    printf '%s: %s\n  fix: %s\n' "$recipe" "$1" "$2" >&2
    exit 2
}

note() {
    printf '%s: %s\n' "$recipe" "$1" >&2
}

usage() {
    cat <<HELP
Usage: [NAME=value ...] sh $0 [training arguments ...]

Training arguments (--learning_rate 2e-5 --max_steps 100 ...) come after the recipe's own: the last one wins.
Settings, from the environment:
  GPUS=$GPUS GPUS_PER_NODE=${GPUS_PER_NODE:-$GPUS}
                           GPUs of the job, and of one node
  BATCH_SIZE=$BATCH_SIZE PER_DEVICE_BATCH_SIZE=$PER_DEVICE_BATCH_SIZE
                           samples per optimizer step over all GPUs, and per GPU in one forward pass
  PARTITION QUOTA_TYPE CPUS_PER_TASK GRES SRUN_ARGS
                           Slurm; with PARTITION set srun starts the ranks, otherwise torchrun
  MASTER_ADDR MASTER_PORT NODE_RANK
                           where the ranks meet; on one machine a free port is found
  MODEL_PATH, or VISION_PATH MLP_PATH LLM_PATH
                           a chat checkpoint, or the parts of a new one
  META_PATH OUTPUT_DIR DEEPSPEED_CONFIG NUM_WORKERS
  LAUNCHER=slurm|pytorch   srun or torchrun, whatever PARTITION says
  PYTHON                   the interpreter; unset: python, and torchrun as found on PATH
  DRY_RUN=1                print the command and stop
  INTERNVL_CHAT_VERBOSE=1  show what libraries and torchrun say
HELP
}

# A clone brings its code along; recipes that `internvl-chat recipes` has written use the installed package.
is_clone() {
    [ -e "$root/internvl_chat/train/finetune.py" ]
}

is_dry_run() {
    case ${DRY_RUN:-0} in 0) return 1 ;; esac
}

require_count() { # name of the setting, its value
    case $2 in
        '' | 0* | *[!0-9]*) fail "$1=$2 is no whole number above zero" "$1=1 or more" ;;
    esac
}

# Print the arguments as one line that a shell reads back as the same words.
quoted() {
    quoted_gap=''
    for quoted_word; do
        printf '%s' "$quoted_gap"
        case $quoted_word in
            '' | *[!A-Za-z0-9_@%+=:,./-]*)
                printf "'%s'" "$(printf '%s\n' "$quoted_word" | sed "s/'/'\\\\''/g")"
                ;;
            *) printf '%s' "$quoted_word" ;;
        esac
        quoted_gap=' '
    done
}

# The micro batch sizes nearest to PER_DEVICE_BATCH_SIZE that divide the number given, smaller or greater.
nearest_micro_batches() {
    below='' above='' size=1
    while [ "$size" -le "$1" ] && [ -z "$above" ]; do
        if [ $(($1 % size)) -eq 0 ]; then
            if [ "$size" -lt "$PER_DEVICE_BATCH_SIZE" ]; then below=$size; else above=$size; fi
        fi
        size=$((size + 1))
    done
    printf '%s' "$below${below:+${above:+ or }}$above"
}

# Sets accumulation, the n of BATCH_SIZE = PER_DEVICE_BATCH_SIZE x GPUS x n. The trainer's BatchPlan
# does the same sum; it is here too so that a mistake is told on a login node without Python.
plan_batch() {
    per_pass=$((PER_DEVICE_BATCH_SIZE * GPUS))
    accumulation=$((BATCH_SIZE / per_pass))
    [ $((BATCH_SIZE % per_pass)) -ne 0 ] || return 0
    works="BATCH_SIZE=$(((accumulation + 1) * per_pass))"
    [ "$accumulation" -eq 0 ] || works="BATCH_SIZE=$((accumulation * per_pass)) or $works"
    if [ $((BATCH_SIZE % GPUS)) -eq 0 ]; then
        fitting=$(nearest_micro_batches $((BATCH_SIZE / GPUS)))
        works="$works; or keep $BATCH_SIZE with PER_DEVICE_BATCH_SIZE=$fitting"
    fi
    fail "BATCH_SIZE=$BATCH_SIZE is not PER_DEVICE_BATCH_SIZE x GPUS x n = $PER_DEVICE_BATCH_SIZE x $GPUS x n" \
        "nearest that work: $works"
}

# Sets launcher (slurm or pytorch), GPUS_PER_NODE and nodes. A job smaller than a node takes a part of one.
plan_nodes() {
    case ${LAUNCHER:-} in
        slurm | pytorch) launcher=$LAUNCHER ;;
        '') if [ -n "${PARTITION:-}" ]; then launcher=slurm; else launcher=pytorch; fi ;;
        *)
            fail "LAUNCHER=$LAUNCHER is unknown" \
                "LAUNCHER=slurm (srun) or LAUNCHER=pytorch (torchrun); unset, PARTITION decides"
            ;;
    esac
    GPUS_PER_NODE=${GPUS_PER_NODE:-$GPUS}
    require_count GPUS_PER_NODE "$GPUS_PER_NODE"
    [ "$GPUS_PER_NODE" -le "$GPUS" ] || GPUS_PER_NODE=$GPUS
    nodes=$((GPUS / GPUS_PER_NODE))
    [ $((GPUS % GPUS_PER_NODE)) -eq 0 ] ||
        fail "GPUS=$GPUS is no multiple of GPUS_PER_NODE=$GPUS_PER_NODE" \
            "nearest that work: GPUS=$((nodes * GPUS_PER_NODE)) or GPUS=$(((nodes + 1) * GPUS_PER_NODE))"
}

# The extra arguments may name another output directory, which the log follows, or go round the batch sum.
read_extra_arguments() {
    previous=''
    for word; do
        case $previous in --output_dir) OUTPUT_DIR=$word ;; esac
        case $word in
            --output_dir=*) OUTPUT_DIR=${word#*=} ;;
            --per_device_train_batch_size* | --gradient_accumulation_steps*)
                note "warning: ${word%%=*} goes round BATCH_SIZE=$BATCH_SIZE; PER_DEVICE_BATCH_SIZE does not"
                ;;
        esac
        previous=$word
    done
}

# Files that are not seen from here are worth a word before the job queues. No error: the nodes may see more.
look_for_files() {
    for path in "$META_PATH" "$DEEPSPEED_CONFIG" \
        "${MODEL_PATH:-}" "${VISION_PATH:-}" "${MLP_PATH:-}" "${LLM_PATH:-}"; do
        case $path in
            ./* | ../* | /* | pretrained/* | shell/*)
                [ -e "$path" ] || note "warning: $path is not seen from $(pwd); see pretrained/README.md" ;;
        esac
    done
}

# The same about the package: torchrun's words about a missing one are in the log only.
look_for_package() {
    python=${PYTHON:-python}
    if is_clone || [ -n "${TRAINER:-}" ] || [ "$launcher" = slurm ] || ! command -v "$python" >/dev/null 2>&1; then
        return 0
    fi
    "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("internvl_chat") is None)' ||
        note "warning: $python has no internvl_chat; activate the environment that it is installed in, or set PYTHON"
}

# Run or print `srun … python -u TRAINER ARGUMENTS`, both of which it is given. MASTER_ADDR and MASTER_PORT reach
# the ranks with the environment; unset, the trainer takes them from the job's node list and number.
launch_slurm() {
    gres=${GRES-gpu:$GPUS_PER_NODE}
    set -f # SRUN_ARGS is split at blanks, its * and ? are left alone
    # shellcheck disable=SC2086
    set -- srun ${PARTITION:+-p} ${PARTITION:+"$PARTITION"} "--job-name=$recipe" ${gres:+"--gres=$gres"} \
        "--nodes=$nodes" "--ntasks=$GPUS" "--ntasks-per-node=$GPUS_PER_NODE" "--cpus-per-task=$CPUS_PER_TASK" \
        --kill-on-bad-exit=1 ${QUOTA_TYPE:+"--quotatype=$QUOTA_TYPE"} ${SRUN_ARGS:-} \
        "${PYTHON:-python}" -u "$@"
    set +f
    run_or_print "$@"
}

# Run or print `torchrun … TRAINER ARGUMENTS`, as above. Ranks on one machine meet over 127.0.0.1, so that its own
# name need not resolve, at a port found at start, so that two jobs never share one; MASTER_PORT fixes it.
launch_pytorch() {
    # What torchrun sets, and says so at length; and time for the ranks to save (--enable_jit_checkpoint True).
    [ "$GPUS_PER_NODE" -eq 1 ] || OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    PET_SHUTDOWN_TIMEOUT=${PET_SHUTDOWN_TIMEOUT:-600}
    export OMP_NUM_THREADS PET_SHUTDOWN_TIMEOUT
    if [ "$nodes" -gt 1 ]; then
        if [ -z "${MASTER_ADDR:-}" ] || [ -z "${NODE_RANK:-}" ]; then
            problem="GPUS=$GPUS with GPUS_PER_NODE=$GPUS_PER_NODE are $nodes machines, and no PARTITION is set"
            mend="PARTITION=name to use Slurm; or on each machine MASTER_ADDR=first-machine"
            mend="$mend NODE_RANK=0..$((nodes - 1)); or GPUS=$GPUS_PER_NODE"
            is_dry_run || fail "$problem" "$mend"
            note "warning: $problem: the line is for the first of them. $mend"
            MASTER_ADDR=${MASTER_ADDR:-first-machine} NODE_RANK=${NODE_RANK:-0}
        fi
        set -- "--nnodes=$nodes" "--node-rank=$NODE_RANK" "--nproc-per-node=$GPUS_PER_NODE" \
            "--master-addr=$MASTER_ADDR" "--master-port=${MASTER_PORT:-29500}" "$@"
    elif [ -n "${MASTER_PORT:-}" ]; then
        set -- --nnodes=1 "--nproc-per-node=$GPUS" "--master-addr=${MASTER_ADDR:-127.0.0.1}" \
            "--master-port=$MASTER_PORT" "--local-addr=${MASTER_ADDR:-127.0.0.1}" "$@"
    else
        set -- --standalone --nnodes=1 "--nproc-per-node=$GPUS" "--local-addr=${MASTER_ADDR:-127.0.0.1}" "$@"
    fi
    if [ -n "${PYTHON:-}" ]; then
        run_or_print "$PYTHON" -m torch.distributed.run "$@"
    else
        run_or_print torchrun "$@"
    fi
}

run_or_print() {
    line=$(quoted "$@")
    if is_clone; then
        PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
        export PYTHONPATH
        line="PYTHONPATH=$(quoted "$PYTHONPATH") $line"
    fi
    if is_dry_run; then
        printf '%s\n' "$line"
        exit 0
    fi
    command -v "$1" >/dev/null 2>&1 ||
        fail "$1 is not on PATH" \
            "torchrun: activate the environment of requirements.txt, or set PYTHON; srun: load Slurm"
    look_for_package
    look_for_files
    mkdir -p "$OUTPUT_DIR"
    log=$OUTPUT_DIR/training_log.txt
    printf '%s %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "$line" >>"$log"
    run_logged "$@"
}

# Run a command with its output on the screen and at the end of $log, and exit with the trainer's status.
# POSIX sh has no pipefail. With a named pipe the command stays a child of this shell: its status is at hand,
# and a signal that stops the script (scancel, a container's end) reaches the command, not the shell alone.
# In a session of its own (where setsid is installed) it gets each signal from here and once: a second SIGTERM,
# sent to the whole process group, would break into torchrun's shutdown.
run_logged() {
    scratch=$(mktemp -d)
    LAUNCH_REPORT=$OUTPUT_DIR/.launch_report.$$ # where the ranks of other nodes see it, too
    export LAUNCH_REPORT
    trap 'rm -rf "$scratch" "$LAUNCH_REPORT" "$LAUNCH_REPORT.started" "$LAUNCH_REPORT.signal"' EXIT
    rm -f "$LAUNCH_REPORT" "$LAUNCH_REPORT.started" "$LAUNCH_REPORT.signal"
    mkfifo "$scratch/output"
    (
        trap '' HUP INT TERM USR1 # tee stays to the last line: no farewell meets a closed pipe
        exec tee -a "$log" <"$scratch/output"
    ) &
    tee_pid=$!
    # A command started in the background ignores INT, unless it is told not to.
    interrupt=TERM
    if env --default-signal=INT true 2>/dev/null; then
        interrupt=INT
        set -- env --default-signal=INT "$@"
    fi
    if command -v setsid >/dev/null 2>&1; then set -- setsid "$@"; fi
    : >"$scratch/launcher"
    if keeps_launcher_apart; then
        LAUNCH_JOIN_OUTPUT=1
        export LAUNCH_JOIN_OUTPUT
        "$@" >"$scratch/output" 2>"$scratch/launcher" </dev/null &
    else
        "$@" >"$scratch/output" 2>&1 </dev/null &
    fi
    command_pid=$!
    signalled='' first_signal=''
    trap 'forward HUP 129' HUP
    trap 'forward INT 130' INT
    trap 'forward TERM 143' TERM
    trap 'forward USR1 138' USR1
    status=0
    wait "$command_pid" || status=$?
    while [ -n "$signalled" ]; do # a trapped signal ends `wait` early: wait again for the true status
        signalled=''
        again=0
        wait "$command_pid" || again=$?
        [ "$again" -eq 127 ] || status=$again # 127: it had ended before, and its status was read
    done
    trap - HUP INT TERM USR1
    # Read now: in bash a subshell that is killed runs the EXIT trap, which takes the files away.
    own_words=$(cat "$scratch/launcher")
    report=$(cat "$LAUNCH_REPORT" 2>/dev/null) || report=''
    finish_log
    [ -z "$own_words" ] || printf '%s\n' "$own_words" >>"$log"
    [ "$status" -eq 0 ] || end_badly
    [ -z "$own_words" ] || printf '%s\n' "$own_words"
    exit "$status"
}

# torchrun ends a failed run with a traceback of its own after all that the ranks said, and with 1. Its errors
# are kept apart, for the log, where the trainer is ours: that sends its own the other way.
keeps_launcher_apart() {
    [ "$launcher" = pytorch ] && [ -z "${TRAINER:-}" ] && ! is_verbose
}

is_verbose() {
    case ${INTERNVL_CHAT_VERBOSE:-} in '' | 0) return 1 ;; esac
}

# Exits. The trainer's exit code and message are in its report; a trainer that could leave none has died, or is not ours.
end_badly() {
    message=''
    if [ -n "$report" ]; then
        status=$(printf '%s\n' "$report" | sed 1q)
        message=$(printf '%s\n' "$report" | sed 1d)
    elif [ -n "$first_signal" ] && [ "$launcher" = pytorch ] && [ "$status" -eq 1 ]; then
        status=$first_signal # torchrun's 1 for a signal that came before the ranks listened
    else
        ended=$(printf '%s\n' "$own_words" | how_ranks_ended)
        if [ -n "$ended" ]; then note "$ended"; else printf '%s' "${own_words:+$own_words
}"; fi
    fi
    # The trainer's message is the last word. Under torchrun it is already; srun has told since how its tasks
    # ended. A crash, 1, has left a traceback: the log's place is worth a line after it.
    if [ -z "$message" ] || [ "$status" -eq 1 ] || [ "$launcher" = slurm ]; then
        note "training ended with exit status $status; see $log"
    fi
    if [ -n "$message" ] && [ "$launcher" = slurm ]; then printf '%s\n' "$message" | tee -a "$log" >&2; fi
    exit "$status"
}

# `rank 1 ended with exit code -9 (pid: 23) (SIGKILL)`, of each that torchrun lists.
how_ranks_ended() {
    sed -n -e '/^ *rank  *: /{ s/^ *rank *: /rank /; s/ (local_rank.*//; h; }' \
        -e '/^ *exitcode  *: /{ s/^ *exitcode *: / ended with exit code /; H; x; s/\n//; p; }'
}

forward() { # name of the signal that the command is to get, the exit code that stands for it
    signalled=1
    case $launcher,$1 in
        # srun passes USR1 to the ranks; torchrun would die of it and leave them, but passes TERM on.
        pytorch,USR1) send TERM ;;
        pytorch,INT) send "$interrupt" ;;
        # srun kills the ranks at TERM and INT before they can say a word. Once they listen, they get USR1, and
        # read what is meant. A second signal, or one before that, ends srun, which may still be queued.
        slurm,TERM | slurm,INT)
            if [ -z "$first_signal" ] && [ -e "$LAUNCH_REPORT.started" ]; then
                printf '%s\n' "$(($2 - 128))" >"$LAUNCH_REPORT.signal"
                send USR1
            else
                send TERM
            fi
            ;;
        *) send "$1" ;;
    esac
    first_signal=${first_signal:-$2}
}

send() {
    kill "-$1" "$command_pid" 2>/dev/null || :
}

# tee ends with the last process that writes to it; one left behind by a crash must not hold the script.
finish_log() {
    (sleep 5 && kill -KILL "$tee_pid") >/dev/null 2>&1 &
    guard_pid=$!
    wait "$tee_pid" 2>/dev/null || :
    kill "$guard_pid" 2>/dev/null || :
}

# Whether choose_model will take a chat checkpoint, not the parts of a new model.
continues_checkpoint() {
    [ -n "${MODEL_PATH:-}" ] ||
        { [ -z "${VISION_PATH:-}${MLP_PATH:-}${LLM_PATH:-}" ] && [ -n "${default_model:-}" ]; }
}

# Sets MODEL_PATH, or VISION_PATH, MLP_PATH and LLM_PATH: the environment's, else the recipe's default_* ones.
choose_model() {
    parts=${VISION_PATH:-}${MLP_PATH:-}${LLM_PATH:-}
    if [ -n "${MODEL_PATH:-}" ] && [ -n "$parts" ]; then
        fail "MODEL_PATH=$MODEL_PATH and parts of a model ($parts) are both set" \
            "MODEL_PATH for a chat checkpoint, or VISION_PATH, LLM_PATH and MLP_PATH to build a new one"
    elif [ -n "${MODEL_PATH:-}" ]; then
        return 0
    elif [ -z "$parts" ]; then
        MODEL_PATH=${default_model:-} VISION_PATH=${default_vision:-}
        MLP_PATH=${default_mlp:-} LLM_PATH=${default_llm:-}
        return 0
    fi
    # Another ViT or LLM: the recipe's projector fits neither, so without MLP_PATH a new one is trained.
    VISION_PATH=${VISION_PATH:-${default_vision:-}}
    LLM_PATH=${LLM_PATH:-${default_llm:-}}
    if [ -z "$VISION_PATH" ] || [ -z "$LLM_PATH" ]; then
        fail "a new model needs VISION_PATH and LLM_PATH, one is unset" \
            "set both, and MLP_PATH for a trained projector; or MODEL_PATH"
    fi
    [ -n "${MLP_PATH:-}" ] || note "warning: no MLP_PATH, the projector starts from random weights"
}

# Start the training run of a recipe. Arguments: the recipe's training arguments, then the user's; both come
# after what the settings decide, and of two equal flags the last one counts.
launch() {
    for word; do
        case $word in -h | --help) usage && exit 0 ;; esac
    done
    for setting in GPUS BATCH_SIZE PER_DEVICE_BATCH_SIZE CPUS_PER_TASK; do
        eval "require_count $setting \"\$$setting\""
    done
    plan_nodes
    plan_batch
    choose_model
    read_extra_arguments "$@"
    set -- --meta_path "$META_PATH" ${DEEPSPEED_CONFIG:+--deepspeed} ${DEEPSPEED_CONFIG:+"$DEEPSPEED_CONFIG"} \
        --per_device_train_batch_size "$PER_DEVICE_BATCH_SIZE" --gradient_accumulation_steps "$accumulation" \
        --dataloader_num_workers "$NUM_WORKERS" --output_dir "$OUTPUT_DIR" "$@"
    if [ -n "${MODEL_PATH:-}" ]; then
        set -- --model_name_or_path "$MODEL_PATH" "$@"
    else
        set -- --vision_path "$VISION_PATH" ${MLP_PATH:+--mlp_path} ${MLP_PATH:+"$MLP_PATH"} \
            --llm_path "$LLM_PATH" "$@"
    fi
    if [ -n "${TRAINER:-}" ]; then
        set -- "$TRAINER" "$@"
    elif is_clone; then
        set -- "${shipped}internvl_chat/train/finetune.py" "$@"
    else
        set -- -m internvl_chat.train.finetune "$@"
    fi
    "launch_$launcher" "$@"
}
