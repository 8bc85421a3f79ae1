# The two commands of the README. Both install what is missing first.
#
#   make bench            speed tables (BENCH_FLAGS="--json out.json --isa all" for more; without --quick: BENCH_FLAGS=)
#   make test             all tests of the package and of the benchmarks
#
# Traits are passed on: make test TRAITS=--disable-default-traits builds without OpenBLAS and installs nothing.

SWIFT ?= swift
TRAITS ?=
BENCH_FLAGS ?= --quick

.PHONY: bench test verify dependencies format lint hygiene docs clean

bench: dependencies
	$(SWIFT) run $(TRAITS) --package-path Benchmarks -c release sparsekernels-bench $(BENCH_FLAGS)

test: dependencies
	$(SWIFT) test $(TRAITS)
	$(SWIFT) test $(TRAITS) --package-path Benchmarks

verify: dependencies
	$(SWIFT) run $(TRAITS) --package-path Benchmarks -c release sparsekernels-bench verify $(CURDIR)/Tests/Goldens

dependencies:
ifneq ($(TRAITS),--disable-default-traits)
	@Scripts/install-dependencies
endif

format:
	$(SWIFT) format --in-place --recursive Sources Tests Benchmarks/Sources Benchmarks/Tests Fuzz/Sources Examples/Sources \
		Package.swift Benchmarks/Package.swift Fuzz/Package.swift Examples/Package.swift

lint:
	$(SWIFT) format lint --strict --recursive Sources Tests Benchmarks/Sources Benchmarks/Tests Fuzz/Sources Examples/Sources \
		Package.swift Benchmarks/Package.swift Fuzz/Package.swift Examples/Package.swift

hygiene: dependencies
	Scripts/check-symbols

docs: dependencies
	SPARSEKERNELS_DOCS=1 $(SWIFT) package generate-documentation --target SparseKernels --warnings-as-errors

clean:
	rm -rf .build Benchmarks/.build Fuzz/.build Examples/.build
