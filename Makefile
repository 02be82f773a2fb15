# GNU make. `make help` lists the targets; every target that needs the environment sets it up first.

.DEFAULT_GOAL := help
.PHONY: help setup setup-workshop lab reset stop doctor test browser backend bench soak lint format notebooks lock clean
.PHONY: test-gpu gpu-bundle hub workshop workshop-check offline-archive site site-links audit
.NOTPARALLEL:

SYSTEM_PYTHON ?= python3
PY := .venv/bin/python
NBVAL := --ignore=notebooks/zh --nbval --nbval-current-env --nbval-cell-timeout=120 --nbval-sanitize-with tests/nbval_sanitize.cfg

# What a user's shell sets must not change an outcome: Python's and pytest's own switches, a plotting backend that
# would replace the notebooks' one, the width of a terminal, and the language of messages.
unexport $(filter PYTHON%,$(.VARIABLES)) MPLBACKEND PYTEST_ADDOPTS PYTEST_PLUGINS FORCE_COLOR COLUMNS LINES
unexport LANG LANGUAGE
export LC_ALL := C.UTF-8
# The environment's own kernel, not one of the same name in the user's home.
export JUPYTER_PREFER_ENV_PATH := 1
# Nor do a user's IPython start-up files and matplotlibrc, where outputs are made or compared.
test notebooks: export IPYTHONDIR := $(CURDIR)/.venv/ipython
test notebooks: export MPLCONFIGDIR := $(CURDIR)/.venv/matplotlib
# And they write into a lab book of their own, not into the user's.
test notebooks: export LAB_BOOK := $(CURDIR)/artifacts/lab_book.sqlite3

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## make or repair the environment in .venv (quick when nothing changed)
	@$(SYSTEM_PYTHON) tools/setup_env.py

setup-workshop: ## the same, and what a hub, the browser tests and the site need on top
	@$(SYSTEM_PYTHON) tools/setup_env.py workshop

lab: setup ## open JupyterLab on your copy of the lessons (LAB_LANGUAGE=zh: in Chinese; LAB_ARGS: options of Jupyter)
	@$(PY) -m lab_utils.workspace lab $(LAB_ARGS)

reset: setup ## bring one lesson back, keep yours in workspace/.backup (LESSON=02)
	@$(PY) -m lab_utils.workspace reset "$(LESSON)"

stop: setup ## end stale servers of this lab and remove their shared memory
	@$(PY) -m lab_utils stop

doctor: setup ## say what this machine has and lacks
	@$(PY) -m lab_utils doctor

test: setup-workshop lint browser ## everything: lint, all tests, all notebooks re-run and compared, their lab book exported
	$(PY) -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder tests/browser tests --ignore=tests/workshop
	$(PY) -m pytest tests/workshop
	rm -f artifacts/lab_book.sqlite3*
	$(PY) -m pytest $(NBVAL) -p no:cacheprovider notebooks
	$(PY) -m pytest -p no:cacheprovider tests/notebooks/after_nbval.py
	$(PY) -m lab_utils labbook export --out artifacts/lab_book

browser: setup-workshop ## find a Chromium for the browser tests, or install one
	@$(PY) tools/get_browser.py

test-gpu: setup ## what needs an NVIDIA GPU and torch; not part of make test (status 77, so an error, without one)
	$(PY) -m pytest -rP tests/gpu

gpu-bundle: setup ## artifacts/gpu_bundle.tar.xz: runs make test-gpu on a host that has a GPU, but no network
	$(PY) tools/gpu_bundle.py

backend: ## build the C++ backends in custom_backend/build (needs only make and a C++ compiler)
	$(MAKE) --directory=custom_backend

hub: setup-workshop ## a hub for a room of learners (HUB_ARGS=--workshop-password: one password for all)
	@$(PY) deploy/jupyterhub/run.py $(HUB_ARGS)

workshop: setup-workshop ## try it: LEARNERS=8 simulated learners log in, run lesson 02 and leave
	@$(PY) deploy/jupyterhub/simulate.py --learners $(or $(LEARNERS),8)

workshop-check: setup ## the day before: run a lesson here, and say READY or NOT READY (LEARNERS=8 on one machine)
	@$(PY) -m lab_utils workshop check --learners $(or $(LEARNERS),1)

offline-archive: setup ## artifacts/offline_lab.tar: sets the lab up on a machine without network
	$(PY) tools/offline_archive.py

site: setup-workshop ## artifacts/site: all lessons with their outputs as a static site, checked for dead links
	$(PY) -m sphinx -q -W --keep-going -c site -d artifacts/doctrees . artifacts/site
	$(PY) tools/check_site.py artifacts/site

site-links: setup-workshop ## look whether the links to other sites still lead somewhere (needs the network)
	$(PY) -m sphinx -q -b linkcheck -c site -d artifacts/doctrees . artifacts/site_links

audit: setup-workshop ## ask PyPI and npm about known advisories of every pinned package (needs their advisory services)
	$(PY) -m pip_audit --disable-pip --require-hashes --strict --progress-spinner off -r requirements.lock
	$(PY) -m pip_audit --disable-pip --require-hashes --strict --progress-spinner off -r requirements-workshop.lock
	NODE_USE_SYSTEM_CA=1 PATH="$(CURDIR)/.venv/bin:$$PATH" npm audit --prefix deploy/jupyterhub --omit=dev

bench: setup ## measure side by side on this machine, in 20 minutes; writes benchmarks/results (BENCH="growth": only that)
	$(PY) benchmarks $(BENCH)

soak: setup ## the long run of many streams: 100,000 tokens (some minutes)
	SOAK_TOKENS=100000 $(PY) -m pytest -rP --timeout 900 tests/server/test_soak.py

lint: setup ## check style and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: setup ## mend style and format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

notebooks: setup ## run all notebooks in place and store their outputs (NOTEBOOKS=notebooks/02_x.ipynb: only these)
	$(if $(NOTEBOOKS),,rm -f artifacts/lab_book.sqlite3*)
	$(PY) tools/run_notebooks.py $(NOTEBOOKS)
	$(PY) tools/translation.py update

lock: ## resolve pyproject.toml into requirements.lock (LOCK_ARGS=--upgrade takes newer versions)
	$(SYSTEM_PYTHON) tools/setup_env.py uv pip compile --quiet --universal --python-version 3.10 --generate-hashes \
		--no-emit-index-url --group test --output-file requirements.lock pyproject.toml \
		--custom-compile-command "make lock" $(LOCK_ARGS)
	$(SYSTEM_PYTHON) tools/setup_env.py uv pip compile --quiet --universal --python-version 3.10 --generate-hashes \
		--no-emit-index-url --group workshop --constraint requirements.lock --output-file requirements-workshop.lock \
		--custom-compile-command "make lock" $(LOCK_ARGS)
	$(SYSTEM_PYTHON) tools/setup_env.py uv pip compile --quiet --universal --python-version 3.10 --generate-hashes \
		--no-emit-index-url --constraint requirements.lock --output-file deploy/kubernetes/requirements.lock \
		--custom-compile-command "make lock" $(LOCK_ARGS) deploy/kubernetes/requirements.in
	$(SYSTEM_PYTHON) tools/setup_env.py uv pip compile --quiet --universal --python-version 3.10 --generate-hashes \
		--no-emit-index-url --output-file benchmarks/torch.lock --custom-compile-command "make lock" $(LOCK_ARGS) \
		benchmarks/torch.in

clean: ## remove the environment and all caches; your lessons in workspace/ stay
	$(MAKE) --directory=custom_backend clean
	rm -rf deploy/jupyterhub/node_modules deploy/jupyterhub/.install.lock
	rm -rf .venv .tools artifacts *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './workspace/*' -prune -exec rm -rf {} +
