# `make demo` and `make test` do all the setup they need; a rerun skips what is already there.
#   PYTHON=python3.12            the Python for the environment (3.10 to 3.13)
#   TORCH_INDEX=URL or pypi      where to get torch, see scripts/set_up.sh
#   ARGS="..."                   more arguments for `hypernoise demo`, `hypernoise evaluate`, pytest, ...
#   WORKERS=2                    test processes of `make check` and `make test`; 0 runs them in one

VENV ?= .venv
WORKERS ?= 2
INSTALLED := $(VENV)/.installed
COMFYUI_INSTALLED := $(VENV)/.installed-comfyui
ORACLE ?= .venv-oracle
ORACLE_INSTALLED := $(ORACLE)/.installed
# Not `python -m pytest`, which would put the root, with our nodes/, on sys.path.
PYTEST := $(VENV)/bin/pytest
RUFF := $(VENV)/bin/ruff
# The tests of a file stay together, as they share expensive fixtures; the files keep their order,
# in which long ones come first.
SHARED := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# The tests that try more with HYPERNOISE_TRUST.
TRUST := tests/trust tests/rewards/test_full_size.py

export PYTHON TORCH_INDEX

.PHONY: demo evaluate bench check test trust trust-long mutants gpu parity comfyui browser oracle lint \
	format lock audit versions clean distclean

demo: $(INSTALLED)  ## train a noise hypernetwork on the embedded generator and report the gain
	$(VENV)/bin/hypernoise demo $(ARGS)

evaluate: $(INSTALLED)  ## train on three seeds, then make the paper's tables in miniature
	sh scripts/evaluate.sh $(VENV)/bin out/evaluation $(ARGS)

bench: $(COMFYUI_INSTALLED)  ## time passes, graphs and training; needs an idle machine
	$(VENV)/bin/python benchmarks/bench.py $(ARGS)

check: $(COMFYUI_INSTALLED) lint  ## lint, import rules, core, parity and nodes, within two minutes
	$(PYTEST) $(SHARED) tests/test_import_rules.py tests/core tests/parity $(ARGS)
	HYPERNOISE_INSIDE_COMFYUI="$$($(VENV)/bin/python tests/comfyui/fetch_comfyui.py)" \
		$(PYTEST) $(SHARED) -m "not slow" tests/comfyui/inside $(ARGS)

test: $(COMFYUI_INSTALLED)  ## all tests, including those that start a real ComfyUI server
	$(PYTEST) $(SHARED) $(ARGS)

trust: $(COMFYUI_INSTALLED)  ## hostile files, broken inputs and crashes, for about ten minutes
	HYPERNOISE_TRUST=short $(PYTEST) $(TRUST) $(ARGS)

trust-long: $(COMFYUI_INSTALLED)  ## the same with the counts in docs/reliability.md
	HYPERNOISE_TRUST=long $(PYTEST) $(TRUST) $(ARGS)

mutants: $(COMFYUI_INSTALLED)  ## mutation testing: do the tests notice changes to the source?
	$(VENV)/bin/python -m hypernoise.tests.mutants.run $(ARGS)

gpu: $(COMFYUI_INSTALLED)  ## the tests that need a CUDA GPU; the others never use one
	HYPERNOISE_GPU=1 $(PYTEST) tests/gpu $(ARGS)

parity: $(INSTALLED)  ## only the comparison with the reference (HYPERNOISE_REFERENCE)
	$(PYTEST) -m parity $(ARGS)

comfyui: $(COMFYUI_INSTALLED)  ## only the tests that start a real ComfyUI server
	$(PYTEST) -m comfyui -s $(ARGS)

browser: $(COMFYUI_INSTALLED)  ## only the tests that open ComfyUI's page in Chromium
	$(PYTEST) -m browser $(ARGS)

oracle: $(INSTALLED) $(ORACLE_INSTALLED)  ## compare the rewards with their original packages
	$(VENV)/bin/python scripts/oracle/compare.py "$(ORACLE)/bin/python"

lint: $(INSTALLED)
	$(RUFF) check .
	$(RUFF) format --check .

format: $(INSTALLED)
	$(RUFF) check --fix .
	$(RUFF) format .

lock: $(INSTALLED)  ## regenerate locks/ with uv; ARGS=--upgrade updates every version
	$(VENV)/bin/python scripts/lock.py $(ARGS)

audit:  ## look up known vulnerabilities of the locked versions online, with uv
	uv tool run pip-audit --strict --disable-pip --require-hashes $(foreach lock,$(wildcard locks/*.txt),-r $(lock))

versions:  ## test the oldest and the newest supported versions, with uv; see docs/versions.md
	sh scripts/versions.sh $(ARGS)

clean:  ## remove outputs and caches, but not the environments
	rm -rf out build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -path './.venv*' -prune -o -name __pycache__ -prune -exec rm -rf {} +

distclean: clean  ## remove the environments too
	rm -rf "$(VENV)" "$(ORACLE)"

$(INSTALLED): pyproject.toml locks/torch.txt locks/project.txt scripts/set_up.sh
	sh scripts/set_up.sh project "$(VENV)"
	@touch "$@"

$(ORACLE_INSTALLED): pyproject.toml scripts/oracle-constraints.txt scripts/set_up.sh
	sh scripts/set_up.sh oracle "$(ORACLE)"
	@touch "$@"

$(COMFYUI_INSTALLED): $(INSTALLED) locks/comfyui.txt tests/comfyui/fetch_comfyui.py
	sh scripts/set_up.sh comfyui "$(VENV)"
	@touch "$@"
