# Ray with the services vision, speech and decoder, and the nano bundle; head and workers of a cluster are this one image.
# On CPUs: docker build -f deploy/images/services.Dockerfile -t autoglm-mesh/services:0.1.0 .
# On GPUs: the same with --build-arg TORCH_INDEX= -t autoglm-mesh/services:0.1.0-cuda
# docs/images.md has the arguments, and what was tried.
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY constraints.txt ./
COPY deploy/images/constraints-cuda.txt deploy/images/
ENV PIP_CONSTRAINT=/src/constraints.txt
RUN python3 -m venv /build \
    && /build/bin/pip install --no-cache-dir --only-binary :all: pip hatchling cyclonedx-bom \
    && python3 -m venv --without-pip /opt/autoglm
# Alone, so that a change of code does not fetch it again. What torch itself needs comes with the rest, from the usual index.
RUN /build/bin/pip --python /opt/autoglm/bin/python install --no-cache-dir --only-binary :all: --no-deps \
        ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} torch
COPY . .
RUN /build/bin/pip wheel --no-cache-dir --no-build-isolation --no-deps --wheel-dir /wheels . \
    && /build/bin/pip --python /opt/autoglm/bin/python install --no-cache-dir --only-binary :all: \
        -c deploy/images/constraints-cuda.txt "$(echo /wheels/*.whl)[vision,speech,decoder]" \
    && /build/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
        --output-file /opt/autoglm/sbom.cdx.json /opt/autoglm/bin/python \
    && cp deploy/images/serve.sh LICENSE /opt/autoglm/
# What only Java programs, compilers and torch's own tests need.
WORKDIR /opt/autoglm/lib
RUN rm -rf python3*/site-packages/ray/jars python3*/site-packages/torch/include python3*/site-packages/torch/test \
        python3*/site-packages/torch/bin/*[Tt]est*

FROM ${BASE}
ARG BASE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="AutoGLM mesh: services" \
    org.opencontainers.image.description="Ray Serve with vision, speech and decoder, and the bundle autoglm-phone-nano" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.base.name="${BASE}"
# KubeRay probes with bash and wget. Debian keeps one version of a package in its archive, so that a pinned one would vanish.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 autoglm \
    && useradd --uid 10001 --gid autoglm --home-dir /tmp --no-create-home autoglm
COPY --from=build /opt/autoglm /opt/autoglm
COPY deploy/serve.yaml /etc/autoglm/serve.yaml
ENV PATH=/opt/autoglm/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1
WORKDIR /tmp
USER 10001:10001
EXPOSE 6379 8000 8080 8265 9000
HEALTHCHECK --interval=5s --timeout=5s --start-period=300s --retries=6 \
    CMD ["wget", "--quiet", "--tries=1", "--output-document=/dev/null", "http://127.0.0.1:8000/-/healthz"]
CMD ["sh", "/opt/autoglm/serve.sh"]
