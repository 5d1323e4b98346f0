#!/bin/sh
# Set up what is missing and serve the mesh: sh run_autoglm_server.sh [options of `autoglm serve`]
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
sh "$root/tools/venv.sh" serve
exec "$root/.venv/bin/autoglm" serve "$@"
