# The two commands of the README are `make report` and `make test`; each installs what is missing first.
PYTHON ?= python3
BIN := .venv/bin
TESTS ?= tests

.PHONY: report test test-slow bench lint figures studies clean

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

report: .venv/.installed
	mkdir -p out
	$(BIN)/hwmodel report deit_base_patch16_224 --device vita,tpu-v3,a100-40gb,agx-orin-64gb \
		--recipe models/deit_base_lsp_b32x32.toml -o out/report.html

test: .venv/.installed
	$(BIN)/python -m pytest -q -n 2 -m "not slow" $(TESTS)

test-slow: .venv/.installed
	$(BIN)/python -m pytest -q -m slow $(TESTS)

bench: .venv/.installed
	$(BIN)/python -m pytest -q --benchmark-enable --benchmark-only tests/benchmarks

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

figures: .venv/.installed
	mkdir -p out
	$(BIN)/python analysis/table5_vita.py -o out/table5_vita.svg
	$(BIN)/python analysis/table6_tpu_v3.py -o out/table6_tpu_v3.svg
	$(BIN)/python analysis/table7_a100.py -o out/table7_a100.svg
	$(BIN)/python analysis/orin_power_modes.py -o out/orin_power_modes.svg
	$(BIN)/python analysis/vita_design.py -o out/vita_design.svg
	$(BIN)/python analysis/lsp_figures.py --densities out/lsp_figure3.svg --masks out/lsp_figure4.svg

studies: .venv/.installed
	mkdir -p out
	$(BIN)/python analysis/systolic_array.py -o out/systolic_array.svg
	$(BIN)/python analysis/vita_pe.py -o out/vita_pe.svg
	$(BIN)/python analysis/orin_tokens.py -o out/orin_tokens.svg
	$(BIN)/python analysis/break_even_a100.py -o out/break_even_a100.svg
	$(BIN)/python analysis/heart_vit_orin.py -o out/heart_vit_orin.svg
	$(BIN)/python analysis/loop_digits.py -o out/loop_digits.svg --results out/loop_digits.csv

clean:
	rm -rf .venv out dist .pytest_cache .mypy_cache .ruff_cache .benchmarks .hypothesis
