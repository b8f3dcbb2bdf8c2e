# The one command of a contributor: `make check` runs what CI runs, in the environment that is active.
.PHONY: check docs format test slow numerics lines pages ports

check:
	ruff format --check .
	ruff check .
	pyright
	$(MAKE) docs
	pytest

format:
	ruff format .
	ruff check --fix .

# The pages of docs/ as a site in build/site; a broken link or an unreadable docstring is an error.
docs:
	NO_MKDOCS_2_WARNING=1 mkdocs build --quiet

test:
	pytest

slow:
	pytest -m slow

# The suite once for each choice of kernels that a setting can force, and once with the processor's own, then a table.
# `make numerics PYTEST_ARGS="tests/kit -k floors"` runs a part of it.
NUMERICS = MKL_ENABLE_INSTRUCTIONS=AVX2 MKL_CBWR=COMPATIBLE ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 \
	OMP_NUM_THREADS=1 KERNELS=own
PYTEST_ARGS =

numerics:
	@mkdir -p build; rm -f build/numerics.txt; failed=0; \
	for setting in $(NUMERICS); do \
		echo "== $$setting"; \
		env $$setting pytest -q -p no:cacheprovider $(PYTEST_ARGS) > build/numerics-$$setting.log 2>&1 || failed=1; \
		grep -E "^(FAILED|ERROR)" build/numerics-$$setting.log; \
		printf '%-32s %s\n' "$$setting" "$$(tail -n 1 build/numerics-$$setting.log)" >> build/numerics.txt; \
	done; \
	echo; cat build/numerics.txt; exit $$failed

# Code lines from text to logits.
lines:
	python tools/lines.py

# The pages of docs/ that are written by running the comparisons, and the pictures of the course. Tests check that they are up to date.
pages:
	PYTHONPATH=.:tests python tools/divergence_guide.py
	PYTHONPATH=.:tests python tools/what_catches_what.py
	python tools/passes_elsewhere.py
	python tools/scale_costs.py --page
	PYTHONPATH=.:course python tools/course_pictures.py
	PYTHONPATH=.:course python tools/course_marks.py

# Other implementations, each in an environment of its own, and docs/ports.md. It needs uv, npm, the package registries,
# a file with a text a line, a folder to work in, and hours for all: make ports TEXTS=texts.txt WORK=/tmp/ports
ports:
	python benchmarks/ports/run.py --texts $(TEXTS) --work $(WORK) $(PORTS)
