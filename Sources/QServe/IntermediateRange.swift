public import SparseKernels

/// The range check for the signed bytes s2 · q − zero between the two levels of a progressively quantised weight.
///
/// QServe's kernels compute these bytes with wrap-around. QServe's quantiser keeps them in range, but its packers and engine do
/// not check (omniserve issues 59 and 60), so third-party weights can be wrong there without an error. All readers and writers
/// of the format in this module check.
public struct IntermediateRange: Hashable, Sendable {
    public let lowest: Int
    public let highest: Int
    /// Number of elements outside −128…127.
    public let violations: Int
    /// The first row with such an element.
    public let firstViolatingRow: Int?

    /// Whether all elements fit into signed bytes.
    public var fits: Bool { violations == 0 }

    /// Checks all codes.
    /// - Parameters:
    ///   - weight: unsigned 4-bit codes in groups, with `scales` = s2, `offsets` = zero and `channelScales` = s1.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidArgument` for a weight of another form, an s2 that is not an integer of 0…127, or a zero that is not
    ///   an integer of −127…128, which is stored as the signed byte −zero.
    /// - Complexity: O(outFeatures · inFeatures), rows in parallel.
    public init(_ weight: QuantizedWeight, on pool: WorkerPool = .shared) throws(SparseKernelsError) {
        guard weight.format.code == .uint4, let groupSize = weight.format.groupSize, weight.channelScales != nil,
            let offsets = weight.offsets
        else {
            throw SparseKernelsError(
                .invalidArgument, "weight", expected: "of two levels: uint4 in groups, with offsets and channel scales",
                actual: "\(weight.format), \(weight.offsets == nil ? "no " : "")offsets, "
                    + "\(weight.channelScales == nil ? "no " : "")channel scales")
        }
        try Self.requireIntegers(weight.scales, 0...127, "weight.scales")
        try Self.requireIntegers(offsets, -127...128, "weight.offsets")
        let rows = pool.map(weight.outFeatures, work: 2 * weight.outFeatures * weight.inFeatures) { row in
            Row(row, of: weight, offsets: offsets, groupSize: groupSize)
        }
        lowest = rows.reduce(.max) { min($0, $1.lowest) }
        highest = rows.reduce(.min) { max($0, $1.highest) }
        violations = rows.reduce(0) { $0 + $1.violations }
        firstViolatingRow = rows.firstIndex { $0.violations > 0 }
    }

    /// - Throws: `.invalidArgument` naming `argument` unless every byte fits.
    func require(_ argument: String) throws(SparseKernelsError) {
        guard let row = firstViolatingRow else { return }
        throw SparseKernelsError(
            .invalidArgument, argument, expected: "such that s2 · q − zero fits −128…127",
            actual: "\(lowest)…\(highest), \(violations) outside, the first of them in row \(row)")
    }

    private static func requireIntegers(
        _ tensor: Tensor<Float>, _ range: ClosedRange<Float>, _ name: String
    ) throws(SparseKernelsError) {
        let values = tensor.span
        for index in 0..<values.count where !(range.contains(values[index]) && values[index].rounded() == values[index]) {
            throw SparseKernelsError(
                .invalidArgument, name, expected: "integers of \(Int(range.lowerBound))…\(Int(range.upperBound))",
                actual: "\(values[index]) at element \(index)")
        }
    }

    private struct Row: Sendable {
        var lowest = Int.max
        var highest = Int.min
        var violations = 0

        init(_ row: Int, of weight: QuantizedWeight, offsets: Tensor<Float>, groupSize: Int) {
            let bytes = weight.paddedInFeatures / 2
            let codes = weight.codes.span.extracting(row * bytes..<(row + 1) * bytes)
            for column in 0..<weight.inFeatures {
                let group = row * weight.groups + column / groupSize
                let code = Int(column % 2 == 0 ? codes[column / 2] & 15 : codes[column / 2] >> 4)
                let value = Int(weight.scales.span[group]) * code - Int(offsets.span[group])
                lowest = min(lowest, value)
                highest = max(highest, value)
                if !(-128...127).contains(value) { violations += 1 }
            }
        }
    }
}
