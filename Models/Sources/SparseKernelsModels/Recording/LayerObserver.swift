public import SparseKernels

/// Called with the name of a linear layer, as in the model's file, such as "model.layers.0.mlp.up_proj", and its input
/// `[tokens, inFeatures]`, just before the layer runs.
public typealias LayerObserver = (_ layer: String, _ input: Tensor<Float>) throws(SparseKernelsError) -> Void
