internal import SparseKernels

/// `minference.index_build`: runs and single keys of every block of queries, from given lines. All are compared exactly.
func replayMInferenceIndex(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    let verticals = try golden.file.tensor("in.vertical_index", as: Int32.self)
    let distances = try golden.file.tensor("in.slash_distance", as: Int32.self)
    var comparison = GoldenComparison()
    try compareIndex(golden, verticals, distances, &comparison)
    return comparison.result(golden)
}

/// `minference.vertical_slash`: scores of the last queries, their lines, and the index of the recorded lines.
///
/// Tolerance: index exact, scores 1e-5 absolute as recorded. 2⁻²¹ relative is added, because the recorded sums are off by up to
/// 4 units in the last place (1.5e-5 at a sum of 44.9, where ours is off by 1.2e-7 from `Double`). Lines are compared as sets.
/// A line that only one side chose must have a score within 2e-5 of the smallest score that both sides chose freely, because
/// both scores may be off by 1e-5. Forced lines must be equal.
func replayMInferenceVerticalSlash(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    struct Parameters: Decodable {
        var lastQueries: Int
        var vertical: Int
        var slash: Int

        enum CodingKeys: String, CodingKey {
            case lastQueries = "last_q"
            case vertical = "vertical_size"
            case slash = "slash_size"
        }
    }
    let parameters = try golden.parameters(Parameters.self)
    let query = try golden.file.floatTensor("in.q_last")
    let key = try golden.file.floatTensor("in.k")
    let vertical = try golden.file.tensor("out.vertical_scores", as: Float.self)
    let slash = try golden.file.tensor("out.slash_scores_by_column", as: Float.self)
    let verticals = try golden.file.tensor("out.vertical_index", as: Int32.self)
    let distances = try golden.file.tensor("out.slash_distance", as: Int32.self)

    let shape = try AttentionShape(
        query: query.view(named: "in.q_last"), key: key.view(named: "in.k"), value: key.view(named: "in.k"))
    let keys = shape.keyLength
    for (name, actual, rows) in [
        ("out.vertical_scores", vertical.shape, keys), ("out.slash_scores_by_column", slash.shape, keys),
        ("out.vertical_index", verticals.shape, parameters.vertical),
        ("out.slash_distance", distances.shape, parameters.slash),
    ] where actual != [shape.queryHeads, rows] {
        throw SparseKernelsError(
            .invalidShape, "\(name) of \(golden.name)", expected: "[\(shape.queryHeads), \(rows)]", actual: "\(actual)")
    }
    let scores = try VerticalSlashScoring(shape, lastQueries: parameters.lastQueries, instructionSet: instructionSet)(
        query: query, key: key, on: pool)
    let selection = try VerticalSlashSelection(vertical: parameters.vertical, slash: parameters.slash)
    var comparison = GoldenComparison()
    func bound(_ expected: Float) -> Double { 1e-5 + 0x1p-21 * Double(expected) }
    for head in 0..<shape.queryHeads {
        for index in 0..<keys {
            // The slash score of distance t is recorded in column keyLength − 1 − t.
            let (line, mirrored) = (head * keys + index, head * keys + keys - 1 - index)
            comparison.compare(
                "out.vertical_scores[\(head), \(index)]", actual: Double(scores.vertical[flat: line]),
                expected: Double(vertical[flat: line]), bound: bound(vertical[flat: line]))
            comparison.compare(
                "slash score of distance \(index) of head \(head)", actual: Double(scores.slash[flat: line]),
                expected: Double(slash[flat: mirrored]), bound: bound(slash[flat: mirrored]))
        }
        let lines = selection(scores, head: head)
        for (name, actual, recorded, forced, values) in [
            ("vertical_index", lines.keys, verticals, selection.forcedKeys, scores.vertical),
            ("slash_distance", lines.distances, distances, selection.forcedDistances, scores.slash),
        ] {
            let count = recorded.shape[1]
            let expected = Set((0..<count).map { recorded[flat: head * count + $0] })
            let shared = expected.intersection(actual).filter { Int($0) >= forced }
            let threshold = shared.map { values[flat: head * keys + Int($0)] }.min() ?? 0
            for line in expected.symmetricDifference(actual) {
                let index = max(0, min(keys - 1, Int(line)))
                let isFree = Int(line) == index && index >= forced && actual.count == count
                comparison.compare(
                    "out.\(name) of head \(head): \(line)",
                    actual: isFree ? Double(values[flat: head * keys + index]) : .infinity, expected: Double(threshold),
                    bound: 2e-5)
            }
        }
    }
    try compareIndex(golden, verticals, distances, &comparison)
    return comparison.result(golden)
}

/// Builds the index of every head and compares it with `out.block_count`, `out.block_offset`, `out.column_count` and
/// `out.column_index`.
private func compareIndex(
    _ golden: GoldenCase, _ verticals: Tensor<Int32>, _ distances: Tensor<Int32>, _ comparison: inout GoldenComparison
) throws(SparseKernelsError) {
    struct Parameters: Decodable {
        var length: Int
        var blockSize: Int

        enum CodingKeys: String, CodingKey {
            case length = "L"
            case blockSize = "block"
        }
    }
    let parameters = try golden.parameters(Parameters.self)
    let blockCount = try golden.file.tensor("out.block_count", as: Int32.self)
    let blockOffset = try golden.file.tensor("out.block_offset", as: Int32.self)
    let columnCount = try golden.file.tensor("out.column_count", as: Int32.self)
    let columnIndex = try golden.file.tensor("out.column_index", as: Int32.self)
    let blocks = try BlockPartition(length: parameters.length, blockSize: parameters.blockSize).count
    let heads = verticals.shape.first ?? 0
    for (name, actual, expected) in [
        ("vertical_index", verticals.shape, [heads, verticals.shape.last ?? 0]),
        ("slash_distance", distances.shape, [heads, distances.shape.last ?? 0]),
        ("out.block_count", blockCount.shape, [heads, blocks]),
        ("out.column_count", columnCount.shape, [heads, blocks]),
        ("out.block_offset", blockOffset.shape, [heads, blocks, distances.shape.last ?? 0]),
        ("out.column_index", columnIndex.shape, [heads, blocks, verticals.shape.last ?? 0]),
    ] where actual != expected {
        throw SparseKernelsError(.invalidShape, "\(name) of \(golden.name)", expected: "\(expected)", actual: "\(actual)")
    }
    for head in 0..<heads {
        func row(_ tensor: Tensor<Int32>) -> [Int32] {
            (0..<tensor.shape[1]).map { tensor[flat: head * tensor.shape[1] + $0] }
        }
        let index = try VerticalSlashIndex(
            VerticalSlashLines(keys: row(verticals), distances: row(distances)), queryLength: parameters.length,
            keyLength: parameters.length, blockSize: parameters.blockSize)
        for block in 0..<blocks {
            for (name, actual, counts, values) in [
                ("block", index.blockStarts(block: block), blockCount, blockOffset),
                ("column", index.columns(block: block), columnCount, columnIndex),
            ] {
                let line = head * blocks + block
                comparison.compare(
                    "out.\(name)_count[\(head), \(block)]", actual: Double(actual.count), expected: Double(counts[flat: line]),
                    bound: 0)
                for (position, value) in actual.prefix(values.shape[2]).enumerated() {
                    comparison.compare(
                        "out.\(name)[\(head), \(block), \(position)]", actual: Double(value),
                        expected: Double(values[flat: line * values.shape[2] + position]), bound: 0)
                }
            }
        }
    }
}
