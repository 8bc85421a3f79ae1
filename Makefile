# The commands of the README. They install what is missing first.
#
#   make bench            speed tables (BENCH_FLAGS="--json out.json --isa all" for more; without --quick: BENCH_FLAGS=)
#   make test             all tests of the package and of the packages nested in it
#   make tools            the command line, Tools/.build/release/sparsekernels
#   make quantize MODEL=in.safetensors OUT=out.safetensors QUANTIZE_FLAGS="--calibration tokens.safetensors"
#
# The package has no default trait, and plain `swift build` and `swift test` need the toolchain only. These commands turn OpenBLAS on, to
# compare with it and to test what uses it; `make test TRAITS=` leaves it out and installs nothing.

SWIFT ?= swift
TRAITS ?= --traits OpenBLAS
BENCH_FLAGS ?= --quick
QUANTIZE_FLAGS ?=

.PHONY: bench tools quantize test verify dependencies format lint hygiene docs clean

bench: dependencies
	$(SWIFT) run $(TRAITS) --package-path Benchmarks -c release sparsekernels-bench $(BENCH_FLAGS)

tools: dependencies
	$(SWIFT) build $(TRAITS) --package-path Tools -c release --product sparsekernels

quantize: tools
	Tools/.build/release/sparsekernels quantize $(MODEL) --output $(OUT) $(QUANTIZE_FLAGS)

test: dependencies
	$(SWIFT) test $(TRAITS)
	$(SWIFT) test --package-path Terminal
	$(SWIFT) test $(TRAITS) --package-path Models
	$(SWIFT) test $(TRAITS) --package-path Benchmarks
	$(SWIFT) test $(TRAITS) --package-path Tools

verify: dependencies
	$(SWIFT) run $(TRAITS) --package-path Benchmarks -c release sparsekernels-bench verify $(CURDIR)/Tests/Goldens

dependencies:
ifneq ($(findstring OpenBLAS,$(TRAITS)),)
	@Scripts/install-dependencies
endif

# What is formatted and linted.
NESTED = Terminal Models Benchmarks Tools Fuzz Examples
FORMATTED = Package.swift Sources Tests $(wildcard $(foreach package,$(NESTED),$(addprefix $(package)/,Package.swift Sources Tests)))

format:
	$(SWIFT) format --in-place --recursive $(FORMATTED)

lint:
	$(SWIFT) format lint --strict --recursive $(FORMATTED)

hygiene: dependencies
	Scripts/check-symbols $(TRAITS)

# Every product, as the Swift Package Index builds them.
DOCUMENTED = $(shell sed -n '/documentation_targets:/,$$s/^ *- //p' .spi.yml)

docs:
	@for target in $(DOCUMENTED); do \
		SPARSEKERNELS_DOCS=1 $(SWIFT) package generate-documentation --target $$target --warnings-as-errors || exit 1; \
	done

clean:
	rm -rf .build $(addsuffix /.build,$(NESTED))
