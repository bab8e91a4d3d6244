# hoarfrost. `make report` on a fresh machine does everything; `make help` lists the rest.
#
#   DATA      folder, CSV or npz of images       (default: the embedded demo set)
#   WEIGHTS   imagenet | PATH | random:SEED | auto
#   ENCODER   the frozen network                 (resnet50, timm:NAME, onnx:FILE; default: resnet18)
#   VIEWS     how to look at each image          (standard, high, or 224,224:flip,448; default: once)
#   LAYERS    layers of the encoder              (LAYERS=3,4; default: the last)
#   POSITIVE  labels that count as class 1       (several: POSITIVE="a b"; with spaces: POSITIVE="'a b'")
#   HEADS     heads to train                     (HEADS="linear mlp:512")
#   CACHE     the cache file; RUN: the run folder (default: below artifacts/, by DATA, WEIGHTS, ENCODER)
#   EXPLAIN   EXPLAIN=1 adds maps of what speaks for a class to the errors in the report
#   LOCKED    LOCKED=1 installs exactly the versions of requirements.lock
#   JOBS      number of test processes           (default: the number of CPUs)
#   RECORD    RECORD=1 makes `make docs` run the examples first, with the checkpoint WEIGHTS
#   SLOW      SLOW=1 makes `make test` also run the slow tests
#   PYTHON    the Python of an existing environment; then nothing is installed

# Recipes read these from the environment, so that spaces and quotes in a path are safe.
export DATA WEIGHTS ENCODER CACHE RUN HEADS VIEWS LAYERS

on = $(filter-out 0 no off false,$(1))# EXPLAIN=0 is as good as nothing

ifdef PYTHON
PY := $(PYTHON)
READY := usable
else
PY := .venv/bin/python
READY := .venv/$(if $(call on,$(LOCKED)),.locked,.ready)
endif

PIP := .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off
HOARFROST := $(PY) -m hoarfrost

# The checkout under its import name, for Python, mypy and editors alike: pipeline/ as hoarfrost, features/ within it.
LINKS := $(CURDIR)/build/links
export PYTHONPATH := $(LINKS)$(if $(PYTHONPATH),:$(PYTHONPATH))
$(shell mkdir -p build/links/hoarfrost; for room in features $(wildcard pipeline/*); do \
	link="build/links/hoarfrost/$$(basename "$$room")"; [ -e "$$link" ] || ln -sfn "../../../$$room" "$$link"; done)
# So that `.venv/bin/hoarfrost` and editors find it there too.
LINKED = @echo "$(LINKS)" >"$$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/hoarfrost-checkout.pth"

ENVIRONMENT = @python="$$(for p in python3 python3.13 python3.12 python3.11; do \
		$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)"; \
	if [ -z "$$python" ]; then echo "hoarfrost needs Python 3.11 or newer; none was found." >&2; exit 1; fi; \
	"$$python" -m venv .venv || { echo "On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

# One place for each DATA and WEIGHTS: another dataset of the same name gets another one.
PLACES = set -e; case "$$DATA" in ?*/) DATA="$${DATA%/}";; esac; \
	if [ -n "$$DATA" ]; then \
		name="$$(basename "$$DATA" | tr -c 'A-Za-z0-9._\n-' _)-$$(printf %s "$$DATA" | cksum | cut -d' ' -f1)"; \
		weights="$${WEIGHTS:-imagenet}"; \
	else \
		name=demo; weights="$${WEIGHTS:-auto}"; \
	fi; \
	place="artifacts/$$name/$$(printf %s "$$weights$${ENCODER:+-$$ENCODER}" | tr -c 'A-Za-z0-9._-' _)"; \
	data="$${DATA:-artifacts/demo/phantoms}"; \
	cache="$${CACHE:-$$place/embeddings.h5}"; \
	set -- $(POSITIVE); [ $$\# -gt 0 ] || [ -n "$$DATA" ] || set -- malignant; \
	run="$$place/run"; \
	for label in "$$@"; do \
		run="$$run-$$(printf %s "$$label" | tr -c 'A-Za-z0-9._-' _)"; shift; set -- "$$@" --positive "$$label"; \
	done; \
	run="$${RUN:-$$run}";

.DEFAULT_GOAL := help
.PHONY: usable help setup extract train report evaluate test lint lock docs soak fuzz bench bench-gpu screenshot clean

help:  ## list the targets
	@sed -n 's/^#  / /p' Makefile
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(READY)  ## create .venv and install everything into it

.venv/.ready: setup.cfg pyproject.toml
	$(ENVIRONMENT)
	@rm -f .venv/.locked
	$(PIP) --editable '.[dev]'
	$(LINKED)
	@touch $@

# Its stamp comes last: what was installed by the lock counts as installed, and not the other way round.
.venv/.locked: requirements.lock setup.cfg pyproject.toml
	$(ENVIRONMENT)
	$(PIP) --require-hashes --requirement requirements.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	$(LINKED)
	@touch .venv/.ready $@

usable:
	@command -v "$(PY)" >/dev/null || { echo "PYTHON=$(PYTHON): command not found" >&2; exit 1; }
	@"$(PY)" -c 'import importlib.util, sys; \
		absent = [n for n in "torch torchvision h5py sklearn click jinja2".split() if importlib.util.find_spec(n) is None]; \
		sys.exit("Missing in this environment: " + ", ".join(absent) + ". Run " + sys.executable + " -m pip install ." if absent else 0)'

extract: $(READY)  ## compute the embeddings that are not in the cache yet
	@$(PLACES) \
	if [ -z "$$DATA" ] && [ ! -e "$$data/labels.csv" ]; then $(HOARFROST) demo "$$data"; fi; \
	set --; [ -z "$$VIEWS" ] || set -- --views "$$VIEWS"; [ -z "$$LAYERS" ] || set -- "$$@" --layers "$$LAYERS"; \
	[ -z "$$ENCODER" ] || set -- "$$@" --encoder "$$ENCODER"; \
	$(HOARFROST) extract "$$data" --cache "$$cache" --weights "$$weights" "$$@"

train: $(READY)  ## train heads on the cache, without the images; replaces an earlier run in RUN
	@$(PLACES) \
	if [ ! -e "$$cache" ]; then $(MAKE) --no-print-directory extract; fi; \
	for head in $$HEADS; do set -- "$$@" --head "$$head"; done; \
	$(HOARFROST) train --cache "$$cache" --run "$$run" --overwrite "$$@"

report: extract  ## extract, train if needed, and write the report
	@$(PLACES) \
	if [ ! -e "$$run/metrics.json" ] || [ "$$cache" -nt "$$run/metrics.json" ] || [ -n "$$HEADS$$RUN" ]; then \
		$(MAKE) --no-print-directory train; fi; \
	$(HOARFROST) report --run "$$run" $(if $(call on,$(EXPLAIN)),--explain)

evaluate: $(READY)  ## evaluate the head of RUN on the labelled cohort DATA, and write the report
	@if [ -z "$$DATA" ] || [ -z "$$RUN" ]; then \
		echo "make evaluate needs a cohort and a run: make evaluate DATA=hospital_b RUN=runs/first" >&2; exit 1; fi; \
	cohort="$$(basename "$$DATA")"; output="$${RUN%/}-on-$${cohort%.*}"; \
	set --; [ -z "$$WEIGHTS" ] || set -- --weights "$$WEIGHTS"; [ -z "$$CACHE" ] || set -- "$$@" --cache "$$CACHE"; \
	$(HOARFROST) evaluate "$$DATA" --run "$$RUN" --output "$$output" --overwrite "$$@" && \
	$(HOARFROST) report --run "$$output"

test: lint  ## lint and run the tests
	@jobs="$${JOBS:-$$($(PY) -c 'from hoarfrost.features.devices import usable_cpus; print(usable_cpus())')}" && set -x && \
	$(PY) -m pytest --numprocesses "$$jobs" --max-worker-restart 0 --dist loadfile --no-loadscope-reorder $(if $(call on,$(SLOW)),,-m "not slow")

lint: $(READY)  ## ruff and mypy
	@if [ -z "$(PYTHON)" ] || $(PY) -c 'import ruff, mypy' 2>/dev/null; then set -ex; \
		$(PY) -m ruff check .; $(PY) -m ruff format --check .; $(PY) -m mypy; \
	else echo "ruff or mypy is not installed in this environment: lint is skipped"; fi

lock: $(READY)  ## update requirements.lock from setup.cfg
	@.venv/bin/python -c 'import uv' 2>/dev/null || $(PIP) uv
	.venv/bin/python -m uv pip compile setup.cfg --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --quiet --custom-compile-command 'make lock' --output-file requirements.lock

docs: $(READY)  ## build the documentation into artifacts/docs
	$(if $(call on,$(RECORD)),$(PY) -m tests.support.documented "$${WEIGHTS:?is the checkpoint to record with}")
	@rm -rf artifacts/docs
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --config-file docs/site/mkdocs.yml

fuzz: $(READY)  ## compare 5,000 changed DICOM headers, then read damaged images for ten minutes (FUZZ_SECONDS)
	@$(PY) -c 'import atheris' 2>/dev/null || { \
		if [ -z "$(PYTHON)" ]; then $(PIP) --editable '.[fuzz]'; \
		else echo "make fuzz needs atheris: pip install 'hoarfrost[fuzz]'" >&2; exit 1; fi; }
	$(PY) -m tests.support.dicom_mutated 5000
	$(PY) -m tests.support.fuzz $(or $(FUZZ_SECONDS),600)

soak: $(READY)  ## kill commands at every change, and 1,000 times at random (SOAK_KILLS); count what was lost or stayed
	OMP_NUM_THREADS=1 $(PY) -m tests.support.soak every
	OMP_NUM_THREADS=1 $(PY) -m tests.support.soak $(if $(SOAK_KILLS),$(SOAK_KILLS),1000)

bench: $(READY)  ## run the benchmarks; write docs/performance.md and artifacts/bench.json
	$(PY) -m tests.benchmarks

bench-gpu: $(READY)  ## on a machine with a GPU: its tests, then its measurements, in about ten minutes
	$(PY) -m tests.benchmarks.gpu

screenshot: $(READY)  ## take the screenshot of the demo report for the README (needs Chromium)
	@$(PY) -m tests.support.screenshot
	@$(MAKE) --no-print-directory report DATA=
	@DATA=; $(PLACES) $(PY) -m tests.support.screenshot "$$run/report.html" pipeline/report/screenshot.png

clean:  ## remove everything that was built, except .venv
	rm -rf artifacts build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
