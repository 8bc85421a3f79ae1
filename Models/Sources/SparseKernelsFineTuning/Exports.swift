@_exported public import SparseKernelsModels
