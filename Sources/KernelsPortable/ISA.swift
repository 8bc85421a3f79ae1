// The portable level's kernels: the shared bodies over 128-bit vectors.
@_exported import VectorPortable
