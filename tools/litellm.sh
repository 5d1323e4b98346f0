#!/bin/sh
# autoglm bench gateway compared with LiteLLM's proxy: sh tools/litellm.sh [--quick] [--json]. LiteLLM's pins conflict
# with ours (rich, tokenizers), so it has an environment of its own, .venv-litellm, which the first run creates.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
venv=$root/.venv-litellm
if [ ! -e "$venv/.ready" ]; then
    "$root/.venv/bin/python" -m venv "$venv"
    "$venv/bin/pip" install --quiet --no-deps --only-binary :all: -r "$root/tools/litellm.txt"
    touch "$venv/.ready"
fi
cd "$root"
exec "$root/.venv/bin/autoglm" bench gateway --litellm "$venv/bin/litellm" "$@"
