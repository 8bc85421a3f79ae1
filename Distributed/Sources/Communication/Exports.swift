@_exported import SparseKernels
