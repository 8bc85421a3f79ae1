@_exported public import SparseKernels
@_exported public import SparseKernelsTraining
