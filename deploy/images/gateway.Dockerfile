# The gateway, without torch, Ray and weights: docker build -f deploy/images/gateway.Dockerfile -t autoglm-mesh/gateway:0.1.0 .
# docs/images.md has the arguments, and what was tried.
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
COPY constraints.txt ./
RUN python3 -m venv /build \
    && /build/bin/pip install --no-cache-dir --only-binary :all: -c constraints.txt pip hatchling cyclonedx-bom \
    && python3 -m venv --without-pip /opt/autoglm
COPY . .
RUN /build/bin/pip wheel --no-cache-dir --no-build-isolation --no-deps --wheel-dir /wheels . \
    && /build/bin/pip --python /opt/autoglm/bin/python install --no-cache-dir --only-binary :all: -c constraints.txt \
        "$(echo /wheels/*.whl)[gateway]" \
    && rm -r /opt/autoglm/lib/python3*/site-packages/autoglm/assets/bundles \
    && /build/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
        --output-file /opt/autoglm/sbom.cdx.json /opt/autoglm/bin/python \
    && cp deploy/images/check_gateway.py LICENSE /opt/autoglm/

FROM ${BASE}
ARG BASE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="AutoGLM mesh: gateway" \
    org.opencontainers.image.description="OpenAI-compatible HTTP API and gRPC API in front of the services" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.base.name="${BASE}"
RUN groupadd --gid 10001 autoglm && useradd --uid 10001 --gid autoglm --home-dir /tmp --no-create-home autoglm
COPY --from=build /opt/autoglm /opt/autoglm
ENV PATH=/opt/autoglm/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1
WORKDIR /tmp
USER 10001:10001
EXPOSE 8000 50051
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=6 CMD ["python", "/opt/autoglm/check_gateway.py"]
CMD ["python", "-m", "autoglm.gateway.app"]
