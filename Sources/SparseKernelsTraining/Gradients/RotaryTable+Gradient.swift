extension RotaryTable {
    /// Rotates every head of every token in place by the negative of its angles, which takes the gradient of what `rotate` gives to the
    /// gradient of what it was given.
    ///
    /// A rotation is orthogonal, so that its transpose is the rotation back. An attention factor multiplies once more, and does not cancel.
    ///
    /// - Parameters:
    ///   - x: heads × positions × `headDim`, in any layout.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` for another number of tokens or channels; nothing is written then.
    public func rotateBack<Element: AttentionElement>(
        _ x: consuming MutableTensorView<Element>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try rotate(x, direction: -1, on: pool)
    }

    /// Rotates a tensor back in place. Rank 3, with the axes in the order of `layout`; rank 2 is one head.
    /// - Throws: the errors of `rotateBack` with a view, and `.invalidShape` for another rank.
    public func rotateBack<Element: AttentionElement>(
        _ x: inout Tensor<Element>, layout: TensorLayout = .hnd, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try rotateBack(x.mutableView(layout: layout, named: "x"), on: pool)
    }
}
