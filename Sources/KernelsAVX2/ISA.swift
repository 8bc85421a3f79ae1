// The AVX2 level's kernels: the shared bodies over 256-bit vectors.
@_exported import VectorAVX2
