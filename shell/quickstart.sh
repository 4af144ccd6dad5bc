#!/bin/sh
# The whole loop in minutes, without a GPU: makes .venv, writes a custom dataset of handwritten digits, fine-tunes the
# shipped tiny model on it with the second recipe (ZeRO-3, two processes), asks held-out questions before and after.
#   sh shell/quickstart.sh [--again] [--help]
#   QUICKSTART_DIR=dir      the run's folder (default work_dirs/quickstart): report.html, result.json, model/
#   QUICKSTART_BUDGET=small every phase, but too little training to learn much; in work_dirs/quickstart-small
#   VENV=dir PYTHON=exe     virtual environment (default .venv) and the Python 3.10 or newer to make it with
set -eu
cd "$(dirname "$0")/.."
. shell/lib/environment.sh
prepare_environment quickstart

exec "$VENV/bin/python" -m examples.quickstart.run "$@"
