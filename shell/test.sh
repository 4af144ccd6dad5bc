#!/bin/sh
# Environment and all tests, in one command: sh shell/test.sh [pytest arguments]
#   VENV=dir   virtual environment to make or reuse (default .venv)
#   PYTHON=exe Python 3.10 or newer to make it with
set -eu
cd "$(dirname "$0")/.."
. shell/lib/environment.sh
prepare_environment test

# One thread a process: the distributed tests start several on what may be two cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" TOKENIZERS_PARALLELISM=false
"$VENV/bin/python" -m pytest "$@"
