# Every target makes .venv from requirements.lock first; nothing else is needed but git and Python >= 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
UV := VIRTUAL_ENV=$(VENV) $(BIN)/uv
UV_VERSION := 0.13.9
# That run tests: one more than there are cores, as some tests wait for servers, and no more than five, of 2 GB each.
PROCESSES := $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 4 ? n + 1 : 5)))

# DVC and Prefect look for programs on the PATH; Prefect and MLflow keep their state in this folder.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PREFECT_HOME ?= $(CURDIR)/.prefect
export DO_NOT_TRACK ?= true
export PREFECT_SERVER_ANALYTICS_ENABLED ?= false
export RAY_USAGE_STATS_ENABLED ?= 0
export MLFLOW_TRACKING_URI ?= sqlite:///$(CURDIR)/mlflow.db

.PHONY: help demo test check lock ui stack stack-down doctor clean

help: ## print the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

demo: $(READY) ## run the whole pipeline on the handwritten digits (minutes on two CPU cores)
	$(BIN)/python -m flows.pipeline

test: $(READY) ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder

check: $(READY) ## lint, format, types, import arrows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

ui: $(READY) ## MLflow on http://127.0.0.1:5000 and Prefect on http://127.0.0.1:4200, until Ctrl-C
	@trap 'trap - INT TERM EXIT; kill $$mlflow $$prefect 2>/dev/null; wait' INT TERM EXIT; \
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow server --host 127.0.0.1 --port 5000 --workers 1 \
		--backend-store-uri $(MLFLOW_TRACKING_URI) --default-artifact-root $(CURDIR)/mlartifacts & mlflow=$$!; \
	$(BIN)/prefect server start --host 127.0.0.1 --port 4200 & prefect=$$!; wait

stack: $(READY) ## PostgreSQL, S3, MLflow, Prefect and a worker as processes of this machine (docs/operations.md)
	@test -e "$${NFM_ENV_FILE:-.env}" || $(BIN)/python -m infra.credentials
	@$(BIN)/python -m infra.stack up

stack-down: $(READY) ## end them; what they have stored stays
	@$(BIN)/python -m infra.stack down

doctor: $(READY) ## check every server, the bucket, the remote and this machine
	@$(BIN)/python -m infra.doctor

lock: $(BIN)/uv ## resolve the dependencies anew into requirements.lock
	$(UV) pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras \
		--no-header --no-annotate --no-emit-index-url pyproject.toml -o requirements.lock

clean: ## remove the environment and caches; keeps results, artifacts and histories
	rm -rf $(VENV) .pytest_cache .ruff_cache .import_linter_cache
	find nfm flows tests -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo \
		"$(PYTHON) is older than the Python 3.11 that nfm needs; try make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

$(READY): requirements.lock pyproject.toml infra/dvc_waits.py | $(BIN)/uv
	$(UV) pip sync --quiet --compile-bytecode requirements.lock
	$(UV) pip install --quiet --no-deps --no-build-isolation --editable .
	@site=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
		cp infra/dvc_waits.py "$$site/nfm_dvc_waits.py" && \
		echo 'import nfm_dvc_waits; nfm_dvc_waits.install()' >"$$site/nfm_dvc_waits.pth"
	@touch $@
