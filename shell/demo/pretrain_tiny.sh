#!/bin/sh
# Make pretrained/internvl-chat-tiny/ anew: a tiny InternVL-Chat that can see, from nothing but a seed.
#   sh shell/demo/pretrain_tiny.sh
# The data come first; then, beside each other, a vision tower with its projector and a language model learn what they
# need to know of the demo's small world; the first recipe of V1-2 stitches the three and trains the whole (the same
# code as at 40 B). At most 90 minutes on 2 cores. A part that is already there is kept, so a run that was stopped goes
# on; remove WORK_DIR to start over.
# Settings, from the environment: WORK_DIR SEED RECORDS VISION_STEPS LANGUAGE_STEPS SFT_STEPS HELDOUT GPUS BATCH_SIZE
#   PER_DEVICE_BATCH_SIZE PYTHON; anything after the script's name goes to the recipe's trainer.
set -eu

cd "$(dirname -- "$0")/../.."
WORK_DIR=${WORK_DIR:-work_dirs/pretrain_tiny}
SEED=${SEED:-0}
RECORDS=${RECORDS:-30000}
VISION_STEPS=${VISION_STEPS:-2000}
LANGUAGE_STEPS=${LANGUAGE_STEPS:-3000}
SFT_STEPS=${SFT_STEPS:-1200}
HELDOUT=${HELDOUT:-200}
GPUS=${GPUS:-2}
PYTHON=${PYTHON:-python}
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
GPUS_PER_NODE=$GPUS
export GPUS GPUS_PER_NODE PYTHON OMP_NUM_THREADS

# "eye", in the names of the vision tower's folder and of its part, is what earlier runs wrote: they go on.
data=$WORK_DIR/data tower=$WORK_DIR/eye llm=$WORK_DIR/llm both=$WORK_DIR/eye_and_llm.done sft=$WORK_DIR/sft result=$WORK_DIR/internvl-chat-tiny
seconds=$WORK_DIR/seconds.txt
mkdir -p "$WORK_DIR"

# Run a part unless the file it ends with is there; its duration goes to the run card.
part() { # name, last file, command...
    part_name=$1 part_file=$2
    shift 2
    if [ -e "$part_file" ]; then
        printf '%s: kept, %s is there\n' "$part_name" "$part_file"
        return 0
    fi
    printf '%s: started\n' "$part_name"
    part_start=$(date +%s)
    # `set -e` is off where the caller tests the status: a part that failed must not count as made.
    "$@" || {
        part_status=$?
        printf '%s: failed with exit status %s\n' "$part_name" "$part_status" >&2
        return "$part_status"
    }
    printf '%s %s\n' "$part_name" "$(($(date +%s) - part_start))" >>"$seconds"
}

make_data() {
    "$PYTHON" -m examples.tiny_model.make_pretrain --out "$data" --num "$RECORDS" --heldout "$HELDOUT" --seed "$SEED" \
        --workers 2
}

make_tower() {
    exec "$PYTHON" -m examples.tiny_model.vision_stage --out "$tower" --steps "$VISION_STEPS" --seed "$SEED" --threads 1
}

make_llm() {
    "$PYTHON" -m examples.tiny_model.language_stage --out "$llm" --steps "$LANGUAGE_STEPS" --seed "$SEED" --threads 1
}

# Neither needs the other, and one thread for each is the best use of two cores.
make_tower_and_llm() {
    tower_process='' tower_status=0 llm_status=0
    if [ ! -e "$tower/mlp.safetensors" ]; then
        make_tower &
        tower_process=$!
        # A background process of a script does not hear Ctrl-C.
        trap 'kill "$tower_process" 2>/dev/null' EXIT
        trap 'exit 130' INT
        trap 'exit 143' TERM
    fi
    [ -e "$llm/model.safetensors" ] || make_llm || llm_status=$?
    if [ -n "$tower_process" ]; then
        [ "$llm_status" -eq 0 ] || kill "$tower_process" 2>/dev/null || true
        wait "$tower_process" || tower_status=$?
        trap - EXIT INT TERM
    fi
    [ "$llm_status" -eq 0 ] || return "$llm_status"
    [ "$tower_status" -eq 0 ] || return "$tower_status"
    touch "$both"
}

# Stage 1 by the first recipe: everything trains. What differs from the 40 B run: sizes, fp32 (CPU), no ZeRO (it
# fits; DEEPSPEED_CONFIG=shell/deepspeed/zero_stage3_config.json gives the same losses, slower), packed rows, no
# gradient checkpointing and no drop path (nothing to save, little to regularise), a learning rate for a model of
# this width, and each sample's weight by the root of its answers' length (boxes are long).
fine_tune() {
    LAUNCHER=pytorch \
        BATCH_SIZE=${BATCH_SIZE:-2} PER_DEVICE_BATCH_SIZE=${PER_DEVICE_BATCH_SIZE:-1} NUM_WORKERS=${NUM_WORKERS:-1} \
        VISION_PATH=$tower/vision MLP_PATH=$tower/mlp.safetensors LLM_PATH=$llm \
        META_PATH=$data/meta.json OUTPUT_DIR=$sft DEEPSPEED_CONFIG=${DEEPSPEED_CONFIG-} \
        sh shell/internvl1.2/hermes2_yi34b/internvl_chat_v1_2_hermes2_yi34b_448_res_finetune.sh \
        --force_image_size 112 --drop_path_rate 0 --bf16 False --grad_checkpoint False \
        --group_by_length False --use_packed_ds True --max_packed_tokens 1536 --max_steps "$SFT_STEPS" \
        --learning_rate 3e-4 --adam_beta2 0.98 --loss_reduction square \
        --max_seq_length 512 --save_steps 200 --save_total_limit 1 --logging_steps 10 --seed "$SEED" "$@"
}

finish() {
    "$PYTHON" -m examples.tiny_model.finish --checkpoint "$sft" --data "$data" --out "$result" --seconds "$seconds" \
        --seed "$SEED" --records "$RECORDS" --vision_steps "$VISION_STEPS" --language_steps "$LANGUAGE_STEPS"
}

part data "$data/meta.json" make_data
part eye_and_llm "$both" make_tower_and_llm
part sft "$sft/model.safetensors" fine_tune "$@"
part finish "$result/run.json" finish
printf 'The model is in %s\n' "$result"
