#!/bin/sh
# sh tools/node.sh: install what examples/node/package-lock.json pins, or nothing when it is there.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
cd "$root/examples/node"

if ! node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' 2>/dev/null || ! command -v npm >/dev/null; then
    echo "autoglm: no Node.js 20 or newer with npm on PATH: install one, then run this again" >&2
    exit 1
fi

stamp=$(cat package-lock.json "$root/tools/node.sh" | cksum)
if [ "$(cat node_modules/.autoglm 2>/dev/null)" = "$stamp" ]; then
    exit 0
fi
echo "autoglm: installing the pinned packages of the examples in JavaScript"
npm ci --no-audit --no-fund
echo "$stamp" >node_modules/.autoglm
