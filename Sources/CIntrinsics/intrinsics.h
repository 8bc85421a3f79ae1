// Makes the vendor's vector intrinsics and CPUID visible to Swift. This package has no C code of its own; the inline
// functions below only spell out a macro and a builtin that Swift cannot import.
#ifndef SPARSEKERNELS_INTRINSICS_H
#define SPARSEKERNELS_INTRINSICS_H

// Asks for the cache line at an address, into the second level. Never faults.
static inline __attribute__((always_inline)) void sparsekernels_prefetch(const void *address) {
    __builtin_prefetch(address, 0, 2);
}

// Asks for the cache line at an address, into the first level. Never faults.
static inline __attribute__((always_inline)) void sparsekernels_prefetch_near(const void *address) {
    __builtin_prefetch(address, 0, 3);
}

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

// Orders stores past the caches before later stores. Other architectures have none of the former here.
static inline __attribute__((always_inline)) void sparsekernels_store_fence(void) {
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

#if defined(__x86_64__)

#if defined(__AVX512F__)
// Groups of four lanes: the even ones of a, then those of b; and the odd ones.
static inline __attribute__((always_inline)) __m512i sparsekernels_even_groups(__m512i a, __m512i b) {
    return _mm512_shuffle_i32x4(a, b, 0x88);
}
static inline __attribute__((always_inline)) __m512i sparsekernels_odd_groups(__m512i a, __m512i b) {
    return _mm512_shuffle_i32x4(a, b, 0xdd);
}
#endif

// XCR0: which register files the operating system saves. Call only when CPUID reports OSXSAVE.
__attribute__((target("xsave"))) static inline unsigned long long sparsekernels_xcr0(void) {
    return (unsigned long long)_xgetbv(0);
}
#endif

#endif
