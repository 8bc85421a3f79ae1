@_exported public import SparseKernels
