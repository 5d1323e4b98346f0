#!/bin/sh
# Set up what is missing, check style, types and contract, and run every test: sh run_tests.sh
# With options they go to pytest and the checks are left out: sh run_tests.sh tests/unit
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
sh "$root/tools/venv.sh" dev
cd "$root"
if [ $# -gt 0 ]; then
    exec "$root/.venv/bin/python" -m pytest "$@"
fi
make check
exec make test
