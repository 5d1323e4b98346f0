#!/bin/sh
# sh tools/clients.sh: create .venv-clients, or update it. It holds the published clients that tests/clients runs and
# whose pins conflict with ours: LlamaIndex wants openai 2, Instructor an older jiter, LiteLLM an older python-dateutil.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
venv=$root/.venv-clients

stamp=$(cat "$root/tools/clients.txt" "$root/tools/clients.sh" | cksum)
if [ "$(cat "$venv/.ready" 2>/dev/null)" = "$stamp" ]; then
    exit 0
fi
"$root/.venv/bin/python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --only-binary :all: \
    -r "$root/tools/clients.txt"
echo "$stamp" >"$venv/.ready"
