extension Tensor<Float> {
    /// Throws `.invalidArgument` naming the first element that is not finite.
    package func requireFinite(named name: String) throws(SparseKernelsError) {
        let elements = span
        for index in 0..<elements.count where !elements[index].isFinite {
            throw SparseKernelsError(
                .invalidArgument, name, expected: "finite", actual: "\(elements[index]) at element \(index)")
        }
    }
}
