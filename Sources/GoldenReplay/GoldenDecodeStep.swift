internal import SparseKernels
internal import SparseKernelsReference

/// The operands of a recorded decoding step: one query per head, `in.q` [heads, headDim], and the tokens of its sequence,
/// `in.k` and `in.v` [kvHeads, tokens, headDim].
struct GoldenDecodeStep {
    /// `[heads, 1, headDim]`.
    let query: Tensor<Float>
    let key: Tensor<Float>
    let value: Tensor<Float>
    /// The same in `Double`: rows by head, and rows by KV head and token.
    let queries: [[Double]]
    let keys: [[[Double]]]
    let values: [[[Double]]]

    init(_ golden: GoldenCase) throws(SparseKernelsError) {
        let query = try golden.file.floatTensor("in.q")
        let key = try golden.file.floatTensor("in.k")
        let value = try golden.file.floatTensor("in.v")
        try require(
            query.shape.count == 2, .invalidShape, "in.q of \(golden.name)", expected: "rank 2", actual: "\(query.shape)")
        let token = try Tensor([query.shape[0], 1, query.shape[1]], query.elements)
        let shape = try AttentionShape(
            query: token.view(named: "in.q"), key: key.view(named: "in.k"), value: value.view(named: "in.v"))
        (self.query, self.key, self.value) = (token, key, value)
        queries = query.rows()
        keys = (0..<shape.kvHeads).map { key.rows(ofHead: $0) }
        values = (0..<shape.kvHeads).map { value.rows(ofHead: $0) }
    }

    var heads: Int { queries.count }
    var kvHeads: Int { keys.count }
    var tokens: Int { keys[0].count }
    var headDim: Int { queries[0].count }

    func kvHead(of head: Int) -> Int { head / (heads / kvHeads) }

    /// The exact output of a head over some positions.
    func output(head: Int, positions: [Int]) -> [Double] {
        let kvHead = kvHead(of: head)
        return ReferencePagedAttention().row(
            query: queries[head], keys: keys[kvHead], values: values[kvHead], positions: positions
        ).output
    }
}

extension GoldenCase {
    /// A recorded tensor of floats, integers or flags in `Double`, as rows along its last axis.
    /// - Throws: `.invalidShape` for another shape, `.notFound` for a missing tensor.
    func rows(_ name: String, _ shape: [Int]) throws(SparseKernelsError) -> [[Double]] {
        let elements: [Double]
        switch try file.entry(named: name).elementType {
        case .bool, .uint8:
            let tensor = try file.tensor(name, as: UInt8.self)
            try check(name, tensor.shape, shape)
            elements = tensor.elements.map { Double($0) }
        case .int32:
            let tensor = try file.tensor(name, as: Int32.self)
            try check(name, tensor.shape, shape)
            elements = tensor.elements.map { Double($0) }
        default:
            let tensor = try file.floatTensor(name)
            try check(name, tensor.shape, shape)
            elements = tensor.elements.map { Double($0) }
        }
        let columns = shape.last ?? 1
        return stride(from: 0, to: elements.count, by: max(1, columns)).map { Array(elements[$0..<$0 + columns]) }
    }
}

extension GoldenComparison {
    /// Compares a row with a recorded one.
    mutating func compare(
        _ name: @autoclosure () -> String, _ actual: [Double], _ expected: [Double], absolute: Double = 0, relative: Double = 0
    ) {
        compare("length of \(name())", actual: Double(actual.count), expected: Double(expected.count), bound: 0)
        for (index, (a, e)) in zip(actual, expected).enumerated() {
            compare("\(name())[\(index)]", actual: a, expected: e, bound: absolute + relative * abs(e))
        }
    }

    /// Compares a list of members with a recorded row of flags.
    mutating func compare(_ name: @autoclosure () -> String, members: [Int], _ mask: [Double]) {
        compare(name(), members.map { Double($0) }, mask.indices.filter { mask[$0] != 0 }.map { Double($0) })
    }
}
