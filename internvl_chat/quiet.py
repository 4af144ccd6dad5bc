"""What libraries say at every start: kept quiet by entry points, shown with ``-v``.

Errors of libraries, and all that this package logs, are always shown. Loads nothing but the
standard library: it runs before anything that it keeps quiet is imported.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings

VERBOSE = "INTERNVL_CHAT_VERBOSE"
"""Environment: 1 shows what libraries say, as ``-v`` does; it also reaches processes started."""

LIBRARIES = (
    *("accelerate", "bitsandbytes", "deepspeed", "DeepSpeed", "diffusers", "kernels", "peft"),
    *("torchao", "transformers", "datasets", "matplotlib", "PIL", "fsspec", "urllib3"),
    *("httpx", "httpx2"),
)
"""Loggers whose warnings are for who calls the library, not for who runs a program."""

ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "GRPC_VERBOSITY": "ERROR",
}
"""Levels that libraries read when they are imported, unless the user has set them."""

WARNINGS = (
    r"OMP_NUM_THREADS/MKL_NUM_THREADS unset, we set it at",
    r"This DataLoader will create .* worker processes",
    r"'pin_memory' argument is set as true but",
    r".*torch\.distributed\..* is deprecated",
    r"Detected call of `lr_scheduler\.step\(\)` before `optimizer\.step\(\)`",
    r"Could not find a config file in .* - will assume that the vocabulary was not modified",
    r"os\.fork\(\) was called",
    r"This process .* is multi-threaded, use of fork\(\) may lead to deadlocks",
    r"Can't initialize (amdsmi|NVML)",
    r"barrier\(\): using the device under current context",
    r"No device id is provided via `init_process_group`",
)
"""Beginnings of warnings about what is meant to be so, or concerns nobody."""


def is_verbose() -> bool:
    """Whether the user wants to see what libraries say."""
    return os.environ.get(VERBOSE, "") not in ("", "0")


def set_up_output(*, verbose: bool = False) -> None:
    """Keep libraries quiet, or not; an entry point calls it before it imports them.

    Args:
        verbose: they speak, here and in processes that this one starts.
    """
    if verbose:
        os.environ[VERBOSE] = "1"
    if is_verbose():
        return
    for name, level in ENVIRONMENT.items():
        os.environ.setdefault(name, level)
    quiet_libraries()
    if sys.warnoptions:  # -W or PYTHONWARNINGS: the user decides
        return
    for category in (FutureWarning, DeprecationWarning, PendingDeprecationWarning):
        warnings.filterwarnings("ignore", category=category)
    for beginning in WARNINGS:
        warnings.filterwarnings("ignore", message=beginning)


def quiet_libraries() -> None:
    """Set the libraries' levels, which some of them set anew when they are imported."""
    if is_verbose():
        return
    for name in LIBRARIES:
        logger = logging.getLogger(name)
        logger.setLevel(logging.ERROR)
        if _is_error not in logger.filters:
            logger.addFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or is_verbose()
