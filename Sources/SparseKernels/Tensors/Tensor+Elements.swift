extension Tensor {
    /// The element at the given indices, outermost axis first: `tensor[head, token, channel]`.
    ///
    /// The number of indices must be the rank, and each index must be at least 0 and below the extent of its axis; anything
    /// else traps. Setting an element first copies the storage if another tensor shares it.
    ///
    /// Use this for single elements. A loop over many is faster with `span`, `mutableSpan`, or `update`.
    /// - Complexity: O(rank).
    public subscript(indices: Int...) -> Element {
        get { self[flat: flatPosition(of: indices)] }
        set { self[flat: flatPosition(of: indices)] = newValue }
    }

    /// The position in memory order of the element at the given indices.
    private func flatPosition(of indices: [Int]) -> Int {
        precondition(
            indices.count == shape.count, "\(indices.count) indices, \(indices), for a tensor of rank \(shape.count), \(shape)")
        var position = 0
        for axis in 0..<shape.count {
            precondition(indices[axis] >= 0 && indices[axis] < shape[axis], "index \(indices) outside \(shape)")
            position = position * shape[axis] + indices[axis]
        }
        return position
    }

    /// Calls `body` with every element and its flat position, in memory order, and stores what `body` assigns.
    ///
    /// ```swift
    /// tensor.update { position, element in element *= position % 2 == 0 ? 1 : -1 }
    /// ```
    ///
    /// The storage is copied first if another tensor shares it. When `body` throws, earlier elements keep their new values.
    /// - Complexity: O(count).
    public mutating func update<Failure: Error>(
        _ body: (_ position: Int, _ element: inout Element) throws(Failure) -> Void
    ) throws(Failure) {
        var elements = mutableSpan
        for position in 0..<elements.count { try body(position, &elements[position]) }
    }
}
