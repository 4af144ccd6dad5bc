#!/bin/sh
# Fine-tune InternVL-Chat-V1-2-Plus on your own data: projector and LLM trained in full, the ViT frozen.
#   PARTITION='your partition' GPUS=16 sh shell/internvl1.2/2nd_finetune/…_2nd_finetune_full.sh
# Seen: about 80 GB per GPU on 16 A100.
set -eu

recipe=internvl_chat_v1_2_hermes2_yi34b_448_res_2nd_finetune_full
lib=$(dirname -- "$0")/../../lib
# shellcheck source=shell/lib/internvl_chat_v1_2.sh
. "$lib/internvl_chat_v1_2.sh"

GPUS=${GPUS:-16}
BATCH_SIZE=${BATCH_SIZE:-128}
PER_DEVICE_BATCH_SIZE=${PER_DEVICE_BATCH_SIZE:-4}
META_PATH=${META_PATH:-${shipped}shell/data/internvl_1_2_finetune_custom.json}
default_model=./pretrained/InternVL-Chat-V1-2-Plus

launch_v1_2 \
    --freeze_backbone True \
    --freeze_mlp False \
    --freeze_llm False \
    --drop_path_rate 0.0 \
    --save_total_limit 1 \
    "$@"
