#!/bin/sh
# Reproduce InternVL-Chat-V1-2: ViT, projector and LLM stitched, then all 40 B parameters trained on 1.27 M samples.
#   PARTITION='your partition' GPUS=64 PER_DEVICE_BATCH_SIZE=8 sh shell/internvl1.2/hermes2_yi34b/…_finetune.sh
# Seen: 18 hours on 64 A100 80 GB, 1.5 days on 32.
set -eu

recipe=internvl_chat_v1_2_hermes2_yi34b_448_res_finetune
lib=$(dirname -- "$0")/../../lib
# shellcheck source=shell/lib/internvl_chat_v1_2.sh
. "$lib/internvl_chat_v1_2.sh"

GPUS=${GPUS:-64}
BATCH_SIZE=${BATCH_SIZE:-512}
PER_DEVICE_BATCH_SIZE=${PER_DEVICE_BATCH_SIZE:-8}
META_PATH=${META_PATH:-${shipped}shell/data/internvl_1_2_finetune.json}
default_vision=./pretrained/InternViT-6B-448px-V1-2
default_mlp=./pretrained/InternViT-6B-448px-V1-2/mlp_projector/hermes_2_yi_34b.pth
default_llm=./pretrained/Nous-Hermes-2-Yi-34B

launch_v1_2 \
    --freeze_backbone False \
    --freeze_mlp False \
    --freeze_llm False \
    --drop_path_rate 0.4 \
    --save_total_limit 3 \
    "$@"
