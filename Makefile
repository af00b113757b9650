# One target per stage; `make` alone prints this list.

PYTHON ?= python3.11
ADDRESS ?= localhost:8500
PORT ?= 8500
REST_PORT ?= 8501
STABLE ?= localhost:8500
CANARY ?= localhost:8600

BIN := .venv/bin
PIPELINE := $(BIN)/python -m pipeline
READY := .venv/.ready
DATA_FLAGS := $(if $(DATASET),--dataset "$(DATASET)") $(if $(MIRROR),--mirror "$(MIRROR)")
MIRROR_FLAG := $(if $(MIRROR),--mirror "$(MIRROR)")
RUN_FLAG := $(if $(RUN),--run "$(RUN)")
FORCE_FLAG := $(if $(FORCE),--force $(if $(filter-out 1,$(FORCE)),"$(FORCE)"))
ADDRESS_FLAG = $(if $(filter file,$(origin ADDRESS)),,--address "$(ADDRESS)")
TRAIN_FLAGS := $(if $(PRESET),--preset $(PRESET)) $(if $(INIT_FROM),--init-from "$(INIT_FROM)") $(FLAGS)

NEWEST := --model_name=googlenet --model_base_path="$(CURDIR)/models/googlenet"
LABELLED := --model_config_file=models/models.config --model_config_file_poll_wait_seconds=1 \
  --allow_version_labels_for_unavailable_models

define RULES
import sys, yaml
print("# Made by `make rules` of", sys.argv[1])
yaml.safe_dump(yaml.safe_load(open(sys.argv[1]))["spec"], sys.stdout, sort_keys=False, width=100)
endef
export RULES

OVERLAY ?= production
TRACKS := $(BIN)/python k8s/components/canary/tracks.py
HAS_CANARY = grep -q components/canary "k8s/overlays/$(OVERLAY)/kustomization.yaml" || \
  { echo 'make: overlay $(OVERLAY) has no canary: add ../../components/canary to its components' >&2; exit 2; }
APPLY_TRACKS = $(KUBECTL) apply -k "k8s/overlays/$(OVERLAY)"
K8S_TOOLS := .venv/k8s
CONTAINER_TOOLS := .venv/containers
SECONDS ?= 600
KUBECTL ?= kubectl

.DEFAULT_GOAL := help
.NOTPARALLEL: # stages follow each other
.PHONY: help setup demo data train import-weights evaluate export validate publish promote rollback versions prune serve classify benchmark tune benchmark-training benchmark-graph benchmark-server benchmark-client canary-start canary-check canary-promote canary-rollback cluster-up cluster-down test test-slow test-k8s test-containers test-cluster test-control-plane rules lint format proto clean

help: ## print this list
	@echo 'GoogLeNet Serving: labelled images in, a served classifier out'; echo
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20
	@echo; echo 'Variables: DATASET=tfds_name|folder  PRESET=demo|best|finetune|imagenet|paper'
	@echo '           MIRROR=file:///…  RUN=runs/…  INIT_FROM=runs/…|file.pth  FLAGS="--seed 2 …"'
	@echo '           WEIGHTS=file.pth  PRECISION=fp32|bf16|int8  GATE="--floor 0.9 …"  FORCE=reason'
	@echo '           VERSION=3  PERCENT=5  LABEL=stable|canary  KEEP=3  IMAGE=file  ADDRESS=host:port  PORT=8500  REST_PORT=8501'
	@echo '           STABLE=host:port  CANARY=host:port'

setup: $(READY) ## make the virtual environment .venv (other targets do it by themselves)

$(READY): constraints.txt pyproject.toml clients/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || \
	  { echo 'make: Python 3.11 is needed: install it, or name it with PYTHON=/path/to/python3.11' >&2; exit 2; }
	@echo 'Setting up .venv: about a minute and 2.5 GB'
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv || \
	  { echo 'make: cannot make a virtual environment: install python3.11-venv' >&2; exit 2; }
	@PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --disable-pip-version-check \
	  $(if $(MAKE_TERMOUT),,--quiet) -e 'clients[bench]' -e '.[dev]'
	@touch $@

demo: $(READY) ## everything once: data, train, evaluate, export, publish, serve, classify
	@$(PIPELINE) demo $(MIRROR_FLAG)

data: $(READY) ## fetch and prepare DATASET, or check a folder of images
	@$(PIPELINE) data $(DATA_FLAGS)

train: $(READY) ## train on DATASET with PRESET, or go on with RUN; leaves a folder in runs/
	@$(PIPELINE) train $(DATA_FLAGS) $(RUN_FLAG) $(TRAIN_FLAGS)

import-weights: $(READY) ## make a run of torchvision's weights, WEIGHTS=googlenet.pth
	@$(PIPELINE) import-weights $(if $(WEIGHTS),--weights "$(WEIGHTS)") $(if $(CLASSES),--classes "$(CLASSES)")

evaluate: $(READY) ## measure the newest run (or RUN) on its test split
	@$(PIPELINE) evaluate $(RUN_FLAG) $(MIRROR_FLAG)

export: evaluate publish ## evaluate, export and publish the newest run (or RUN)

validate: $(READY) ## the gate: judge the newest export (or RUN's) on a server; GATE="--floor 0.9 …"
	@$(PIPELINE) validate $(RUN_FLAG) $(DATA_FLAGS) $(GATE)

publish: $(READY) ## export and publish the newest run (or RUN), if the gate lets it pass or FORCE=reason
	@$(PIPELINE) export $(RUN_FLAG) $(DATA_FLAGS) $(if $(PRECISION),--precision $(PRECISION))
	@$(PIPELINE) validate $(RUN_FLAG) $(DATA_FLAGS) $(GATE) || test $$? -eq 1 -a -n "$(FORCE)"
	@$(PIPELINE) publish $(RUN_FLAG) $(FORCE_FLAG)

promote: $(READY) ## give VERSION the LABEL stable or canary, on the server at ADDRESS if named
	@test -n "$(VERSION)" -a -n "$(LABEL)" || { echo 'make: name both: make promote VERSION=3 LABEL=stable' >&2; exit 2; }
	@$(PIPELINE) promote "$(VERSION)" --label "$(LABEL)" $(ADDRESS_FLAG)

rollback: $(READY) ## give stable back to the version that had it before
	@$(PIPELINE) rollback $(ADDRESS_FLAG)

versions: $(READY) ## list the published versions
	@$(PIPELINE) versions

prune: $(READY) ## delete all but the KEEP newest versions and the labelled ones
	@test -n "$(KEEP)" || { echo 'make: say how many: make prune KEEP=3' >&2; exit 2; }
	@$(PIPELINE) prune --keep "$(KEEP)"

serve: $(READY) ## serve the labelled versions, or the newest if none is, on PORT and REST_PORT until Ctrl-C
	@test -d models/googlenet || { echo 'make: no model is published in models/: run `make train export`' >&2; exit 2; }
	@exec $(BIN)/python -m serving --port=$(PORT) --rest_api_port=$(REST_PORT) \
	  --monitoring_config_file=serving/config/monitoring.config $(if $(wildcard models/models.config),$(LABELLED),$(NEWEST)) \
	  --enable_batching --batching_parameters_file=serving/config/batching.config $$(cat serving/config/flags)

classify: $(READY) ## classify IMAGE on the server at ADDRESS
	@test -n "$(IMAGE)" || { echo 'make: name an image: make classify IMAGE=path/to/image.jpg' >&2; exit 2; }
	@$(BIN)/tfs classify --address "$(ADDRESS)" "$(IMAGE)"

benchmark: $(READY) ## measure the published model on a server of its own, or what is at ADDRESS
	@$(PIPELINE) benchmark $(if $(DATASET),--dataset "$(DATASET)") $(ADDRESS_FLAG) -- $(FLAGS)

tune: $(READY) ## look for the server's best batching and threads for the published model
	@$(PIPELINE) tune $(if $(DATASET),--dataset "$(DATASET)") -- $(FLAGS)

benchmark-training: $(READY) ## measure training, beside PyTorch where it is installed
	@$(PIPELINE) benchmark-training $(MIRROR_FLAG) $(FLAGS)

benchmark-graph: $(READY) ## measure inference in each precision, beside ONNX Runtime and OpenVINO
	@$(PIPELINE) benchmark-graph $(FLAGS)

benchmark-server: $(READY) ## measure the embedded server beside the same model in process
	@$(PIPELINE) benchmark-server $(FLAGS)

benchmark-client: $(READY) ## measure what the client costs beyond gRPC and protobuf
	@$(BIN)/python clients/benchmark.py $(FLAGS)

canary-start: $(READY) ## on the cluster, serve VERSION to PERCENT (5) of the callers of OVERLAY (production)
	@test -n "$(VERSION)" || { echo 'make: name it: make canary-start VERSION=3 PERCENT=5' >&2; exit 2; }
	@$(HAS_CANARY)
	@$(TRACKS) start "$(VERSION)" $(PERCENT) && $(APPLY_TRACKS)

canary-check: $(READY) ## say whether the server at CANARY may be promoted, beside the one at STABLE
	@$(BIN)/tfs canary "$(STABLE)" "$(CANARY)" $(if $(wildcard data/samples),--images data/samples) $(FLAGS)

canary-promote: $(READY) ## on the cluster, make the canary's version stable
	@$(HAS_CANARY)
	@$(TRACKS) promote && $(APPLY_TRACKS)

canary-rollback: $(READY) ## on the cluster, send every call to stable
	@$(HAS_CANARY)
	@$(TRACKS) rollback && $(APPLY_TRACKS)

test: lint ## linters, type checks and all tests but the slow ones
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-slow: $(READY) ## the slow tests: whole trainings, and comparisons with PyTorch if installed
	@$(BIN)/python -m pytest -m slow

test-k8s: $(READY) $(K8S_TOOLS)/.ready ## manifests: every overlay × component rendered and judged, rules, dashboard
	@$(BIN)/python -m pytest tests/k8s --numprocesses 2 --dist loadfile

test-containers: $(READY) $(CONTAINER_TOOLS)/.ready ## the images on a Docker engine, as the manifests run them; SECONDS (600) of load
	@MEMORY_SECONDS="$(SECONDS)" $(BIN)/python -m pytest tests/containers -m containers -p no:randomly -rs

test-cluster: $(READY) ## every overlay, or OVERLAY, on the cluster of KUBECONFIG: rollout, traffic, scale, rollback
	@CLUSTER_OVERLAY="$(if $(filter file,$(origin OVERLAY)),,$(OVERLAY))" CLUSTER_ACCESS="$(ACCESS)" \
	  $(BIN)/python -m pytest tests/cluster -m cluster -p no:randomly -rs

cluster-up: $(READY) ## start a real control plane with simulated nodes; Go builds it once, in half an hour
	@$(BIN)/python -m tests.control_plane up

cluster-down: $(READY) ## stop it
	@$(BIN)/python -m tests.control_plane down

test-control-plane: $(READY) ## the manifests on what `make cluster-up` started: validation, rollouts, drains, 500 replicas
	@$(BIN)/python -m pytest tests/control_plane -m control_plane -rPs

rules: $(READY) ## write the alerts of k8s/components/monitoring for the compose file's Prometheus
	@$(BIN)/python -c "$$RULES" k8s/components/monitoring/prometheus-rule.yaml > serving/container/prometheus/rules.yaml

$(K8S_TOOLS)/.ready: tests/k8s/requirements.txt | $(READY)
	@echo 'Setting up $(K8S_TOOLS): about a minute and 0.6 GB'
	@$(PYTHON) -m venv $(K8S_TOOLS)
	@$(K8S_TOOLS)/bin/pip install --disable-pip-version-check --quiet --no-deps --no-compile -r $<
	@tests/k8s/install-promtool $(K8S_TOOLS)/bin
	@touch $@

$(CONTAINER_TOOLS)/.ready: tests/containers/requirements.txt tests/containers/install | $(READY)
	@echo 'Setting up $(CONTAINER_TOOLS): half a minute and 0.5 GB'
	@$(PYTHON) -m venv $(CONTAINER_TOOLS)
	@$(CONTAINER_TOOLS)/bin/pip install --disable-pip-version-check --quiet --no-deps -r $<
	@tests/containers/install $(CONTAINER_TOOLS)/debian
	@touch $@

lint: $(READY)
	@$(BIN)/ruff check --quiet && $(BIN)/ruff format --check --quiet
	@$(BIN)/mypy --no-error-summary && cd clients && ../$(BIN)/mypy --no-error-summary

format: $(READY) ## format the code
	@$(BIN)/ruff check --quiet --fix && $(BIN)/ruff format --quiet

proto: $(READY) ## generate the client's messages from its .proto file
	@cd clients && ../$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. tfs_client/tfs.proto

clean: ## remove everything made here but data, runs and models
	@rm -rf .venv build .mypy_cache .pytest_cache .ruff_cache
