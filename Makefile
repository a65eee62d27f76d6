# make book, make test: from a fresh clone, nothing else needed but Python 3.11, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SITE_READY := $(VENV)/.ready-site
BENCH_READY := $(VENV)/.ready-bench
PEERS := einconv einops linear-operator opt-einsum pyhessian tensorly
NO_DEPS := curvlinops-for-pytorch backpack-for-pytorch unfoldNd
SITE := _build/html/searchindex.js
PDF := _build/implicit-regularization.pdf

# One torch thread in every process; string hashing the same in every process.
export OMP_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
export PYTHONHASHSEED := 0

.DEFAULT_GOAL := help
.PHONY: help book test drills times audit pdf test-site screenshots bench record clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[book,cluster,dev]'
	@touch $@

book: $(READY)  ## run every chapter, judge it, render the book, print the verdicts
	$(BIN)/implicitreg reproduce
	$(BIN)/implicitreg render

test: $(READY)  ## lint, types, unit tests, recorded notebooks (nbval), other seeds (papermill)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist loadfile --doctest-modules lib tests/unit
	$(BIN)/pytest -n 2 --dist loadfile --nbval --nbval-current-env --nbval-cell-timeout 300 book
	$(BIN)/pytest tests/notebooks

drills: $(READY)  ## the tests that kill workers, fill disks and damage files
	$(BIN)/pytest -n 2 tests/unit/reproduce/drills

times: $(READY)  ## fail where a notebook takes more than 3 times what its chapter declares
	$(BIN)/implicitreg reproduce --fresh --timed

# A report, not a gate: what is found, or that the service that knows was not to be reached, is in the file.
audit: $(READY)  ## known vulnerabilities and licences of everything that is installed, in _build/audit
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[audit]'
	$(BIN)/python .ci/audit.py _build/audit

# What the site tests need beside the environment: Chromium, the packages that drive it, a rendered book, and its PDF.
# A book that was rendered from a run is tested as it is.
$(SITE_READY): $(READY)
	@$(BIN)/python tests/site/browsing.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[book,cluster,dev,site]'
	@touch $@

$(SITE): | $(SITE_READY)
	$(BIN)/implicitreg render

$(PDF): $(SITE) | $(SITE_READY)
	$(BIN)/implicitreg pdf

pdf: $(PDF)  ## the whole book as one PDF
	@echo "$(PDF)"

test-site: $(PDF)  ## the rendered book in Chromium: links, mathematics, contrast, widths, keys, search, downloads
	$(BIN)/pytest -n 2 tests/site

screenshots: $(SITE) | $(SITE_READY)  ## pictures of four pages, in both themes, wide and narrow, to look at
	$(BIN)/python tests/site/screenshots.py

# What the library is compared with. curvlinops asks for torchvision, which would replace torch, so pip must not resolve
# it. A package that cannot be had is left out, and the tables say so.
$(BENCH_READY): $(READY)
	-for peer in $(PEERS); do $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $$peer; done
	-for peer in $(NO_DEPS); do \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps $$peer; done
	@touch $@

bench: $(BENCH_READY)  ## time the library against alternatives (10 minutes), and write the book's tables and figure of it
	mkdir -p _build
	$(BIN)/pytest benchmarks --benchmark-only --benchmark-quiet --benchmark-json=_build/benchmarks.json
	$(BIN)/python benchmarks/dashboard.py _build/benchmarks.json

record: $(READY)  ## execute the notebooks and write their recorded outputs
	$(BIN)/implicitreg record

clean:  ## delete what was built; the environment stays
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache book/.ruff_cache .hypothesis .benchmarks
