# The commands of the README. They install what is missing first.
#
#   make bench            speed tables (BENCH_FLAGS="--json out.json --isa all" for more; without --quick: BENCH_FLAGS=)
#   make test             all tests of the package, the benchmarks and the tools
#   make tools            the command line, Tools/.build/release/sparsekernels
#   make quantize MODEL=in.safetensors OUT=out.safetensors QUANTIZE_FLAGS="--calibration tokens.safetensors"
#
# Traits are passed on: make test TRAITS=--disable-default-traits builds without OpenBLAS and installs nothing.

SWIFT ?= swift
TRAITS ?=
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
	$(SWIFT) test $(TRAITS) --package-path Benchmarks
	$(SWIFT) test $(TRAITS) --package-path Tools

verify: dependencies
	$(SWIFT) run $(TRAITS) --package-path Benchmarks -c release sparsekernels-bench verify $(CURDIR)/Tests/Goldens

dependencies:
ifneq ($(TRAITS),--disable-default-traits)
	@Scripts/install-dependencies
endif

format:
	$(SWIFT) format --in-place --recursive Sources Tests Benchmarks/Sources Benchmarks/Tests Tools/Sources Tools/Tests \
		Fuzz/Sources Examples/Sources Package.swift Benchmarks/Package.swift Tools/Package.swift Fuzz/Package.swift \
		Examples/Package.swift

lint:
	$(SWIFT) format lint --strict --recursive Sources Tests Benchmarks/Sources Benchmarks/Tests Tools/Sources Tools/Tests \
		Fuzz/Sources Examples/Sources Package.swift Benchmarks/Package.swift Tools/Package.swift Fuzz/Package.swift \
		Examples/Package.swift

hygiene: dependencies
	Scripts/check-symbols

docs: dependencies
	SPARSEKERNELS_DOCS=1 $(SWIFT) package generate-documentation --target SparseKernels --warnings-as-errors

clean:
	rm -rf .build Benchmarks/.build Tools/.build Fuzz/.build Examples/.build
