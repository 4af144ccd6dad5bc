#!/bin/sh
# Fine-tune InternVL-Chat-V1-2-Plus on your own data: LoRA of rank 16 on the LLM, the rest frozen. No Slurm needed.
#   GPUS=2 sh shell/internvl1.2/2nd_finetune/…_2nd_finetune_lora.sh
# Seen: about 63 GB per GPU on 2 A100.
set -eu

recipe=internvl_chat_v1_2_hermes2_yi34b_448_res_2nd_finetune_lora
lib=$(dirname -- "$0")/../../lib
# shellcheck source=shell/lib/internvl_chat_v1_2.sh
. "$lib/internvl_chat_v1_2.sh"

GPUS=${GPUS:-2}
BATCH_SIZE=${BATCH_SIZE:-16}
PER_DEVICE_BATCH_SIZE=${PER_DEVICE_BATCH_SIZE:-4}
META_PATH=${META_PATH:-${shipped}shell/data/internvl_1_2_finetune_custom.json}
default_model=./pretrained/InternVL-Chat-V1-2-Plus

launch_v1_2 \
    --freeze_backbone True \
    --freeze_mlp True \
    --freeze_llm True \
    --use_llm_lora 16 \
    --drop_path_rate 0.0 \
    --save_total_limit 1 \
    "$@"
