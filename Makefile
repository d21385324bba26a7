# deepcluster: every task in one word. Needs Python 3.10 or newer, make, and the package index for the first run.
PYTHON ?= python3
BIN := .venv/bin
DATA ?= ../shared/data
# Processes of `make test`: one more than cores, since tests also wait.
WORKERS ?= $(shell $(PYTHON) -c "import os; print(min(4, (os.cpu_count() or 1) + 1))")

# Compiled modules are kept, whatever the environment says: hundreds of processes are started.
unexport PYTHONDONTWRITEBYTECODE

# Presets whose weights go with a release: on the digits, and on small images where there are some in DATA.
TINY ?= tiny-deepcluster tiny-deepcluster-pic tiny-deepercluster tiny-odc tiny-deepcluster-v2 tiny-swav
SMALL ?= deepcluster-convnet deepercluster-convnet odc-convnet deepcluster-v2-convnet swav-convnet

.PHONY: help demo test test-all check bench docs weights clean

help:
	@echo "make demo      train on the bundled digits, group tiles of three photos, print scores, write two reports"
	@echo "make test      install what the tests need and run them"
	@echo "make test-all  the same with the slow ones"
	@echo "make check     lint, format, types, layers"
	@echo "make docs      the site of docs/, in build/site"
	@echo "make bench     every benchmark, side by side with its peer or bound"
	@echo "make weights   networks and clusters of the small presets with their scores, for a release, in build/weights"

.venv/.user: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e ".[pretrained]"
	touch $@

.venv/.developer: .venv/.user
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e ".[pretrained,onnx,ray,dev]"
	touch $@

.venv/.writer: .venv/.developer
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $@

demo: .venv/.user
	$(BIN)/deepcluster train tiny-deepcluster --data digits --out runs/demo --overwrite
	$(BIN)/deepcluster evaluate runs/demo clusters --k classes
	$(BIN)/deepcluster report runs/demo
	$(BIN)/python examples/photo_tiles.py runs/tiles
	$(BIN)/deepcluster cluster runs/tiles --out runs/demo-tiles --backbone timm:tf_efficientnet_lite0 --overwrite
	$(BIN)/deepcluster evaluate runs/demo-tiles clusters

test: .venv/.developer
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-all: .venv/.developer
	$(BIN)/python -m pytest -m ""

check: .venv/.developer
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/.writer
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: .venv/.developer
	$(BIN)/python benchmarks/input_pipeline.py
	$(BIN)/python benchmarks/epoch.py
	$(BIN)/python benchmarks/kmeans.py 10000x64x10 50000x256x1000 50000x512x1000 100000x128x2000 200000x128x10000
	$(BIN)/python benchmarks/pic.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/odc_step.py
	$(BIN)/python benchmarks/manifest.py
	$(BIN)/python benchmarks/length.py
	$(BIN)/python benchmarks/linear.py
	$(BIN)/python benchmarks/processes.py
	$(BIN)/python benchmarks/plan.py
	$(BIN)/python benchmarks/explore.py
ifneq ($(wildcard $(DATA)/cifar10/test.tar),)
	$(BIN)/python benchmarks/cifar.py --train "$(DATA)/cifar10/train-*.tar" --test $(DATA)/cifar10/test.tar
	$(BIN)/python benchmarks/curate.py --train "$(DATA)/cifar10/train-*.tar" --test $(DATA)/cifar10/test.tar
	$(BIN)/python benchmarks/photos.py --data $(DATA) --out runs/photos-table
	$(BIN)/python benchmarks/methods.py --train "$(DATA)/cifar10/train-*.tar" --test $(DATA)/cifar10/test.tar --out runs/methods
	$(BIN)/python benchmarks/evaluation.py --data $(DATA)/cifar10/train-000.tar --test $(DATA)/cifar10/test.tar \
		--out runs/table deepcluster=runs/methods/deepcluster odc=runs/methods/odc both=runs/methods/both
	$(BIN)/python benchmarks/groups.py $(DATA)/cifar10/test.tar
	$(BIN)/python benchmarks/heads.py runs/photos-table/images/*
else
	@echo "no CIFAR-10 in $(DATA)/cifar10: cifar.py, curate.py, photos.py, methods.py, evaluation.py and groups.py skipped; DATA=FOLDER names another folder"
endif
ifneq ($(wildcard $(DATA)/voc/bccd.tar),)
	$(BIN)/python benchmarks/transfer.py $(DATA)/voc/bccd.tar
else
	@echo "no $(DATA)/voc/bccd.tar: transfer.py skipped"
endif

weights: .venv/.user
	set -e; for preset in $(TINY); do \
		$(BIN)/deepcluster train $$preset --data digits --out runs/weights/$$preset --overwrite; \
		$(BIN)/deepcluster evaluate runs/weights/$$preset clusters --k classes; \
	done
ifneq ($(wildcard $(DATA)/cifar10/test.tar),)
	set -e; for preset in $(SMALL); do \
		$(BIN)/deepcluster train $$preset --data "$(DATA)/cifar10/train-*.tar" --out runs/weights/$$preset --overwrite; \
		$(BIN)/deepcluster evaluate runs/weights/$$preset knn --test $(DATA)/cifar10/test.tar --k 20; \
	done
else
	@echo "no CIFAR-10 in $(DATA)/cifar10: the weights of $(SMALL) are left out; DATA=FOLDER names another folder"
endif
	rm -rf build/weights
	set -e; for run in runs/weights/*; do \
		$(BIN)/deepcluster export $$run --format huggingface --out build/weights/$$(basename $$run); \
	done

clean:
	rm -rf .venv build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
