// Makes the vendor's vector intrinsics and CPUID visible to Swift. This package has no C code of its own; the one inline
// function below only spells out a macro that Swift cannot import.
#ifndef SPARSEKERNELS_INTRINSICS_H
#define SPARSEKERNELS_INTRINSICS_H

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

// XCR0: which register files the operating system saves. Call only when CPUID reports OSXSAVE.
__attribute__((target("xsave"))) static inline unsigned long long sparsekernels_xcr0(void) {
    return (unsigned long long)_xgetbv(0);
}
#endif

#endif
