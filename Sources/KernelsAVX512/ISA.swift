// The AVX512 level's kernels: the shared bodies over 512-bit vectors.
@_exported import VectorAVX512
