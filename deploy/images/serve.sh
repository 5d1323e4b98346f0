#!/bin/sh
# The command of the services' image: one Ray node with the applications of a Serve config. It ends when Ray ends.
# On Kubernetes, KubeRay has its own commands. Variables: deploy/k8s/base/generated/ray.env.
set -eu
ray start --head --node-ip-address=127.0.0.1 --num-cpus=2 --object-store-memory=134217728 --metrics-export-port=8080 \
    --disable-usage-stats
exec serve run --address=auto "${1:-/etc/autoglm/serve.yaml}"
