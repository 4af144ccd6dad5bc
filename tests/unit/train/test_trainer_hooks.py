"""Each method of transformers' Trainer that ours overrides still exists, with these parameters."""

from __future__ import annotations

import inspect

import pytest
from transformers import Trainer

from internvl_chat.train.trainer import InternVLTrainer

HOOKS = {
    "get_train_dataloader": ["self"],
    "set_initial_training_values": ["self", "args", "dataloader"],
    "_init_training_state": [
        "self",
        "max_steps",
        "num_update_steps_per_epoch",
        "num_train_epochs",
        "resume_from_checkpoint",
        "trial",
    ],
    "_prepare_for_training": ["self", "max_steps", "train_dataloader", "resume_from_checkpoint"],
    "_run_epoch": [
        "self",
        "model",
        "epoch",
        "train_dataloader",
        "steps_in_epoch",
        "num_update_steps_per_epoch",
        "trial",
        "ignore_keys_for_eval",
        "start_time",
        "resume_from_checkpoint",
        "epochs_trained",
        "steps_trained_in_current_epoch",
    ],
    "get_batch_samples": ["self", "epoch_iterator", "num_batches", "device"],
    "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    "_prepare_inputs": ["self", "inputs"],
    "floating_point_ops": ["self", "inputs"],
    "_maybe_log_save_evaluate": [
        "self",
        "tr_loss",
        "grad_norm",
        "model",
        "trial",
        "epoch",
        "ignore_keys_for_eval",
        "start_time",
        "learning_rate",
    ],
    "evaluate": ["self", "eval_dataset", "ignore_keys", "metric_key_prefix"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    "_load_best_model": ["self"],
    "_save_checkpoint": ["self", "model", "trial"],
    "save_model": ["self", "output_dir", "_internal_call"],
    "get_decay_parameter_names": ["self", "model"],
    "create_optimizer": ["self", "model"],
    "_get_learning_rate": ["self"],
}


@pytest.mark.parametrize("name", HOOKS)
def test_hook_is_there(name: str) -> None:
    assert list(inspect.signature(getattr(Trainer, name)).parameters) == HOOKS[name]


def test_every_override_is_listed() -> None:
    own = {n for n, v in vars(InternVLTrainer).items() if inspect.isfunction(v)}
    overridden = {name for name in own if hasattr(Trainer, name)} - {"__init__"}
    assert overridden <= HOOKS.keys()


def test_loss_is_declared_as_scaled() -> None:
    assert "self.loss_is_scaled_for_ga" in inspect.getsource(Trainer.training_step)
    assert InternVLTrainer.loss_is_scaled_for_ga is True


def test_epochs_are_run_by_keyword() -> None:
    source = inspect.getsource(Trainer._inner_training_loop)
    assert "epochs_trained=epochs_trained" in source
