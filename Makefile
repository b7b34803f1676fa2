PYTHON ?= python3
RUN = ../.venv/bin/python ..
NOTES ?= 20

demo: .venv/installed  ## a trained network and its ROC curves from nothing, in demo/
	rm -rf demo
	.venv/bin/python examples/guitar_effects.py demo/Samples --notes $(NOTES)
	cd demo && $(RUN)/preprocess_data.py
	cd demo && $(RUN)/train_network.py --groups '^G\d\d-\d{5}'
	cd demo && $(RUN)/eval_network.py
	@echo "Open demo/Results/report.html in a browser"

bench: .venv/installed  ## the speed of preprocessing and of copies beside librosa's, about 6 minutes
	.venv/bin/python benchmarks/preprocess.py
	.venv/bin/python benchmarks/augment.py

test: .venv/installed  ## the linter and all tests
	.venv/bin/ruff check .
	.venv/bin/python -m pytest -q -n 2 --dist worksteal tests

leaks: .venv/installed  ## 200 sets of sounds in many versions: is no recording on two sides? 5 to 8 minutes
	LEAKS=200 .venv/bin/python -m pytest -q -rs tests/test_leaks.py

torture: .venv/installed  ## what is kept when all goes wrong; ARGS="--seconds 3600 --seed 1" for longer
	.venv/bin/python tests/torture $(ARGS)

mutants: .venv/installed  ## break the code on purpose, in 48 places, and see that a test notices each, 5 minutes
	.venv/bin/python tests/mutants.py $(ARGS)

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt 'pytest>=8,<10' 'pytest-xdist>=3.5,<4' 'ruff>=0.9,<1' 'distributed>=2026.1' 'jax>=0.5' 'tensorboard>=2.21' 'onnx>=1.22' 'tf2onnx>=1.16' 'onnxruntime>=1.24' 'playwright>=1.50'
	touch $@

.PHONY: bench demo leaks mutants test torture
