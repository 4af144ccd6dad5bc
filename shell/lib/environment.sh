# shellcheck shell=sh
# Sourced by quickstart.sh, test.sh and the demos, from the repository's root.
# prepare_environment EXTRA: makes the virtual environment $VENV once and again whenever the pinned
# requirements change, and installs this package with the extra EXTRA (test, quickstart, smollm2) into it.

find_python() {
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.10 python3; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    echo "error: no Python 3.10 or newer found. Install one, or name it: PYTHON=/path/to/python3" >&2
    return 2
}

prepare_environment() {
    extra=$1
    VENV=${VENV:-.venv}
    export VENV
    stamp="$VENV/.installed-$extra"
    wanted=$(cat requirements.txt requirements-dev.txt setup.py | cksum)
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        return 0
    fi
    if [ ! -x "$VENV/bin/python" ]; then
        python=$(find_python)
        echo "== making the virtual environment $VENV"
        "$python" -m venv "$VENV"
    fi
    echo "== installing pinned requirements (once; some minutes)"
    # torch first and alone: other packages' ranges must find the pinned build already there.
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
        "$(grep '^torch==' requirements.txt)"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
        --constraint requirements-dev.txt -r requirements.txt -e ".[$extra]"
    printf '%s\n' "$wanted" >"$stamp"
}
