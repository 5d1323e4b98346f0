.DEFAULT_GOAL := all
BIN := .venv/bin
PROTOS := $(wildcard protos/autoglm/v1/*.proto)
# Faults come last: they leave a mesh in which replicas have been replaced.
OTHER_TESTS := tests/clients tests/contract tests/integration tests/security tests/faults

.PHONY: all protos docs check test bench
all: check test

protos:  ## Generate the contract's code, next to it.
	$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=protos --grpc_python_out=protos \
		--plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --mypy_out=protos \
		--plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc --mypy_grpc_out=protos $(PROTOS)

docs:  ## Write the pages and manifests that are made from settings, protos and the Serve config.
	$(BIN)/python -m autoglm.cli.reference > docs/configuration.md
	$(BIN)/python tools/grpc_docs.py > docs/grpc.md
	$(BIN)/python tools/metrics_docs.py
	$(BIN)/python tools/manifests.py
	$(BIN)/python tools/dashboards.py

check:  ## Style, types, imports, tables, contract.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/readme_tables.py --check
	$(BIN)/python tools/fault_tables.py --check
	$(BIN)/python tools/openai_fields.py --check
	$(BIN)/python tools/metrics_docs.py --check
	$(BIN)/buf lint
	$(BIN)/buf breaking --against protos/autoglm-v1.binpb

test:  ## Every test: those of single parts in two processes, then those of the real mesh, which the others would disturb.
	@failed=0; \
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/unit || failed=$$?; \
	$(BIN)/python -m pytest $(OTHER_TESTS) || failed=$$?; \
	exit $$failed

bench:  ## Time to first token, tokens per second and stages of a mesh started for it.
	$(BIN)/autoglm bench smoke
