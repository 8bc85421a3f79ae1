# The commands of the README, which `make` prints. Each installs what it needs first.
#
# The package has no default trait, and plain `swift build` and `swift test` need the toolchain only. These commands turn OpenBLAS on, to
# compare with it and to test what uses it; `make test TRAITS=` leaves it out and installs nothing.

SWIFT ?= swift
TRAITS ?= --traits OpenBLAS
BENCH_FLAGS ?= --quick
QUANTIZE_FLAGS ?=
DEMO_FLAGS ?= --temperature 0.7 --seed 2
VIDEO ?= video.gif
VIDEO_FLAGS ?= --attention svg2 --compare --strip $(VIDEO:.gif=-strip.png)

.DEFAULT_GOAL := help
.PHONY: help bench tools quantize demo demo-video demo-vision pictures test test-mpi verify tables dependencies format lint hygiene docs clean

help: ## print this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS='	' read -r target text; do \
		printf 'make %-12s %s\n' "$$target" "$$text"; done

bench: dependencies ## speed tables; BENCH_FLAGS="--json out.json --isa all" for more, BENCH_FLAGS= for all rows
	$(SWIFT) run $(TRAITS) --package-path Benchmarks -c release sparsekernels-bench $(BENCH_FLAGS)

tools: dependencies ## the command line, Tools/.build/release/sparsekernels
	$(SWIFT) build $(TRAITS) --package-path Tools -c release --product sparsekernels

quantize: tools ## a model file in 4 bits: MODEL=in.safetensors OUT=out.safetensors QUANTIZE_FLAGS="--calibration tokens.safetensors"
	Tools/.build/release/sparsekernels quantize $(MODEL) --output $(OUT) $(QUANTIZE_FLAGS)

demo: dependencies ## a text by the 4-bit language model in here; DEMO_FLAGS="'func sum(' -n 200 --temperature 0.8 --method dense+quest"
	$(SWIFT) build $(TRAITS) --package-path Tools -c release --product sparse-lm
	Tools/.build/release/sparse-lm generate $(DEMO_FLAGS)

demo-video: dependencies pictures ## a video by sparse and by dense attention, of the model in here: VIDEO=a.gif VIDEO_FLAGS="--sprite circle,red,right"
	$(SWIFT) build $(TRAITS) --package-path Tools -c release --product sparse-video
	Tools/.build/release/sparse-video generate --out $(VIDEO) $(VIDEO_FLAGS)

demo-vision: dependencies ## patches of the picture in here that resemble its letter, as PNG files: VISION_FLAGS="--scales 378,756 --passes 2"
	$(SWIFT) build $(TRAITS) --package-path Tools -c release --product sparse-vision
	Tools/.build/release/sparse-vision select Models/Data/pictures/desk.png --like 960,300,420,320 --out desk $(VISION_FLAGS)

pictures: ## install ImageMagick where it is missing, for GIF and PNG files
	@Scripts/install-imagemagick

# Nested packages share the objects of the package: what they depend on is compiled once.
test: dependencies ## all tests, those of the nested packages too; TRAITS= does without OpenBLAS
	$(SWIFT) test $(TRAITS)
	$(SWIFT) test --package-path Terminal
	for package in Distributed Models Benchmarks Tools; do \
		$(SWIFT) test $(TRAITS) --package-path $$package --scratch-path $(CURDIR)/.build || exit 1; \
	done

test-mpi: ## ranks that are processes of this machine, over MPI, and what is left when one is killed
	@Scripts/install-mpi
	$(SWIFT) test --traits MPI --package-path Distributed --scratch-path $(CURDIR)/.build --filter RanksTests

verify: dependencies ## recorded cases of released code through the benchmark
	$(SWIFT) run $(TRAITS) --package-path Benchmarks -c release sparsekernels-bench verify $(CURDIR)/Tests/Goldens $(CURDIR)/Distributed/Tests/Goldens

tables: dependencies ## write the tables of README and Docs again, from Benchmarks/Results
	$(SWIFT) run $(TRAITS) --package-path Benchmarks -c release sparsekernels-bench tables

dependencies: ## install OpenBLAS where it is missing
ifneq ($(findstring OpenBLAS,$(TRAITS)),)
	@Scripts/install-dependencies
endif

# What is formatted and linted.
NESTED = Terminal Distributed Models Benchmarks Tools Fuzz Examples
FORMATTED = Package.swift Sources Tests $(wildcard $(foreach package,$(NESTED),$(addprefix $(package)/,Package.swift Sources Tests)))

format: ## format all Swift files
	$(SWIFT) format --in-place --recursive $(FORMATTED)

lint: ## check format and links
	$(SWIFT) format lint --strict --recursive $(FORMATTED)
	Scripts/check-links

hygiene: dependencies ## check the symbols of every level
	Scripts/check-symbols $(TRAITS)

# Every product, as the Swift Package Index builds them.
DOCUMENTED = $(shell sed -n '/documentation_targets:/,$$s/^ *- //p' .spi.yml)

docs: ## documentation of all products, with warnings as errors
	@for target in $(DOCUMENTED); do \
		SPARSEKERNELS_DOCS=1 $(SWIFT) package generate-documentation --target $$target --warnings-as-errors || exit 1; \
	done

clean: ## remove everything that was built
	rm -rf .build $(addsuffix /.build,$(NESTED))
