# shellcheck shell=sh
# What the three recipes of InternVL-Chat-V1-2 have in common. Sourced by them after `lib` and `recipe` are set.

: "${lib:?the recipe sets it}" "${recipe:?the recipe sets it}"
# shellcheck source=shell/lib/launch.sh
. "$lib/launch.sh"

GPUS_PER_NODE=${GPUS_PER_NODE:-8}
CPUS_PER_TASK=${CPUS_PER_TASK:-10}
NUM_WORKERS=${NUM_WORKERS:-4}
OUTPUT_DIR=${OUTPUT_DIR:-work_dirs/internvl_chat_v1_2/$recipe}
DEEPSPEED_CONFIG=${DEEPSPEED_CONFIG-${shipped}shell/deepspeed/zero_stage3_config_34b.json}

# Image size, template and tiling are a chat checkpoint's own: the recipe gives them to a new model, made of parts, only.
launch_v1_2() {
    set -- \
        --max_seq_length 2048 \
        --group_by_length True \
        --do_train True \
        --bf16 True \
        --grad_checkpoint True \
        --num_train_epochs 1 \
        --learning_rate 1e-5 \
        --weight_decay 0.05 \
        --warmup_ratio 0.03 \
        --lr_scheduler_type cosine \
        --eval_strategy no \
        --save_strategy steps \
        --save_steps 200 \
        --logging_steps 1 \
        --report_to tensorboard \
        "$@"
    continues_checkpoint || set -- \
        --conv_style Hermes-2 \
        --force_image_size 448 \
        --down_sample_ratio 0.5 \
        --vision_select_layer -1 \
        --ps_version v1 \
        --dynamic_image_size False \
        --use_thumbnail False \
        --max_dynamic_patch 1 \
        "$@"
    launch "$@"
}
