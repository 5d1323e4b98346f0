#!/bin/sh
# The command of the services' image: one Ray node with the applications of a Serve config. It ends when Ray ends.
# On Kubernetes, KubeRay has its own commands. Variables: deploy/k8s/base/generated/ray.env.
set -eu
export RAY_raylet_start_wait_time_s=300  # the default of 60 is short where nothing has been read from the disk before
ray start --head --node-ip-address=127.0.0.1 --num-cpus=2 --object-store-memory=134217728 --metrics-export-port=8080 \
    --include-dashboard=false --disable-usage-stats
exec serve run --address=auto "${1:-/etc/autoglm/serve.yaml}"
