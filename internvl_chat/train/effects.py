"""What each argument of a run decides, so that two runs can be compared.

Every flag stands in one class, on purpose: a test holds the table against the flags.
"""

from __future__ import annotations

from typing import Any, Final, Literal

Effect = Literal["none", "length", "rate", "batch", "files", "zero", "choice", "result"]
"""What another value of an argument does to a run that goes on or is complete:

- ``none``: the model comes out the same, but for rounding: what is shown and kept, where, by which
  kernels, with how many workers, and when the run gives up.
- ``length``: how many steps, or when there are enough.
- ``rate``: the learning rate and its schedule.
- ``batch``: the global batch size together with the number of ranks; alone it changes nothing.
- ``files``: names files whose content counts, not their place.
- ``zero``: the DeepSpeed file, compared key by key.
- ``choice``: which of a run's models is the result, where it is chosen by a figure.
- ``result``: another model.
"""

_CLASSES: Final[dict[Effect, str]] = {
    "length": "num_train_epochs max_steps early_stopping_patience early_stopping_threshold",
    "rate": """
        learning_rate vision_lr mlp_lr llm_lr vit_layer_decay_rate lr_scheduler_type
        lr_scheduler_kwargs warmup_steps""",
    "batch": "per_device_train_batch_size gradient_accumulation_steps",
    "files": "model_name_or_path vision_path llm_path mlp_path meta_path",
    "zero": "deepspeed",
    "choice": """
        eval_meta_path eval_strategy eval_steps eval_delay eval_on_start save_strategy save_steps
        metric_for_best_model greater_is_better""",
    "result": """
        freeze_llm freeze_mlp freeze_backbone unfreeze_vit_layers unfreeze_lm_head use_llm_lora
        use_backbone_lora lora_alpha lora_dropout lora_target_modules use_rslora use_dora
        modules_to_save load_in_4bit
        vision_select_layer drop_path_rate ps_version use_fast_tokenizer
        conv_style max_seq_length force_image_size down_sample_ratio pad2square dynamic_image_size
        use_thumbnail min_dynamic_patch max_dynamic_patch min_num_frame max_num_frame video_backend
        normalize_type apply_exif_orientation image_backend use_data_resampling use_packed_ds
        max_packed_tokens max_packed_tiles loss_reduction max_image_pixels strict_root
        val_split val_split_seed max_samples
        optim optim_args optim_target_modules weight_decay adam_beta1 adam_beta2 adam_epsilon
        max_grad_norm label_smoothing_factor neftune_noise_alpha bf16 fp16 tf32 use_liger_kernel
        liger_kernel_config auto_find_batch_size load_best_model_at_end seed data_seed
        train_sampling_strategy dataloader_drop_last fsdp fsdp_config parallelism_config""",
    "none": """
        grad_checkpoint attn_implementation pad_to_multiple_of max_bad_ratio output_dir
        overwrite_output_dir
        resume_from_checkpoint logging_dir do_train do_eval do_predict local_rank
        average_tokens_across_devices bf16_full_eval fp16_full_eval activation_checkpointing
        activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs
        torch_compile torch_compile_backend torch_compile_mode use_cache torch_empty_cache_steps
        logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter
        include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to run_name
        project trackio_space_id trackio_bucket_id trackio_static_space_id
        per_device_eval_batch_size prediction_loss_only eval_do_concat_batches
        eval_use_gather_object eval_accumulation_steps include_for_metrics batch_eval_metrics
        save_only_model save_on_each_node save_total_limit enable_jit_checkpoint push_to_hub
        hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision
        ignore_data_skip restore_callback_states_from_checkpoint full_determinism use_cpu
        accelerator_config dataloader_num_workers dataloader_pin_memory
        dataloader_persistent_workers dataloader_prefetch_factor
        dataloader_multiprocessing_context dataloader_in_order remove_unused_columns label_names
        length_column_name ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers
        ddp_static_graph ddp_backend ddp_timeout debug skip_memory_metrics""",
}

EFFECTS: Final[dict[str, Effect]] = {
    name: effect for effect, names in _CLASSES.items() for name in names.split()
}
"""Argument -> what it decides."""

OF_THE_MACHINE: Final = frozenset({"video_backend"})
"""Defaults that follow what is installed, and come to the same: no other run where nobody has given
the argument."""

DECIDES_OTHERS: Final = frozenset(
    {
        *(name for name, effect in EFFECTS.items() if effect in ("result", "choice")),
        "vision_lr",
        "mlp_lr",
        "vit_layer_decay_rate",
        "early_stopping_patience",
    }
)
"""By what is said of these others are filled in (``assumed``, ``evaluation_schedule``): where it
differs, so do those because of it, and not because a default has changed."""

ZERO_WITHOUT_EFFECT: Final = frozenset(
    {
        "activation_checkpointing",
        "aio",
        "bf16",
        "checkpoint",
        "comet",
        "comms_logger",
        "communication_data_type",
        "csv_monitor",
        "disable_allgather",
        "dump_state",
        "flops_profiler",
        "gradient_accumulation_steps",
        "memory_breakdown",
        "seq_parallel_communication_data_type",
        "steps_per_print",
        "tensorboard",
        "timers",
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "wall_clock_breakdown",
        "wandb",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
        "zero_optimization",
    }
)
"""Keys of a DeepSpeed file that change no result: how it is sharded, shown and sent. Batch sizes
and precisions in it are those of the arguments, else the run does not start."""


def settled(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with what follows from others filled in, and what these leave without effect
    taken out: two runs with equal results are equal in it.

    Args:
        arguments: by name, as ``arguments.json`` holds them.
    """
    found = dict(arguments)
    if found.get("data_seed") == found.get("seed"):
        found["data_seed"] = None  # it follows
    if found.get("optim") == "adamw_torch_fused":
        found["optim"] = "adamw_torch"  # the same sum by another kernel
    if found.get("tf32") is False:
        found["tf32"] = None  # products of fp32 numbers go without unasked, too
    idle: set[str] = set()
    if found.get("use_packed_ds"):
        idle |= {"train_sampling_strategy"}
    else:
        idle |= {"max_packed_tokens", "max_packed_tiles"}
    if not found.get("dynamic_image_size"):
        idle |= {"use_thumbnail", "min_dynamic_patch", "max_dynamic_patch"}
    if found.get("lr_scheduler_type") in ("constant", "reduce_lr_on_plateau", "greedy"):
        idle |= {"warmup_steps"}
    if not found.get("val_split"):
        idle |= {"val_split_seed"}
    if found.get("early_stopping_patience") is None:
        idle |= {"early_stopping_threshold"}
    _settle_rates(found)
    _settle_lora(found)
    for name in idle:
        found.pop(name, None)
    found["lr_scheduler_kwargs"] = found.get("lr_scheduler_kwargs") or None
    found["optim_args"] = found.get("optim_args") or None
    return found


def _settle_lora(found: dict[str, Any]) -> None:
    """What a new adapter has unasked is as good as unsaid; one that is continued has its own, and
    a flag that says otherwise is refused before anything is compared. Dropout may be said anew."""
    ranks = {found.get(name) or 0 for name in ("use_llm_lora", "use_backbone_lora")} - {0}
    usual: dict[str, tuple[object, ...]] = {
        "lora_alpha": (2 * ranks.pop(),) if len(ranks) == 1 else (),
        "lora_target_modules": (["all-linear"], "all-linear"),
        "use_rslora": (False,),
        "use_dora": (False,),
    }
    for name, values in usual.items():
        if found.get(name) in values:
            found[name] = None


def _settle_rates(found: dict[str, Any]) -> None:
    """A part's rate that is ``--learning_rate`` follows it; one that no part follows is idle."""
    parts = [name for name in ("vision_lr", "mlp_lr", "llm_lr") if name in found]
    own = found.get("learning_rate")
    given = {found[name] for name in parts}
    if len(given) == 1 and None not in given:
        own = found["learning_rate"] = given.pop()
    for name in parts:
        found[name] = None if found[name] == own else found[name]
    if parts and all(found[name] is not None for name in parts):
        found.pop("learning_rate", None)


def zero_settings(arguments: dict[str, Any]) -> dict[str, Any]:
    """What of a DeepSpeed file changes the result, by ``key.key``; "auto" is the arguments'.

    Args:
        arguments: by name, as ``arguments.json`` holds them.
    """
    config = arguments.get("deepspeed")
    if not isinstance(config, dict):
        return {}
    found: dict[str, Any] = {}
    for key, value in config.items():
        if key in ZERO_WITHOUT_EFFECT:
            continue
        if key == "optimizer" and _is_adam(value):
            continue  # its numbers are those of the arguments, else the run does not start
        if key == "fp16" and not arguments.get("fp16"):
            continue
        if key == "gradient_clipping" and value == arguments.get("max_grad_norm"):
            continue
        parts = value.items() if isinstance(value, dict) else [("", value)]
        for part, setting in parts:
            if setting != "auto" and part not in ("enabled", "auto_cast"):
                found[f"{key}.{part}".rstrip(".")] = setting
    return found


def _is_adam(optimizer: object) -> bool:
    kind = optimizer.get("type", "") if isinstance(optimizer, dict) else ""
    return str(kind).lower() in ("adam", "adamw")
