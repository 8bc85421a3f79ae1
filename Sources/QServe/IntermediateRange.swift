public import SparseKernels

/// The signed bytes between the two levels of a progressively quantised weight, s2 · q − zero: how far they reach, and whether they fit.
///
/// QServe's kernels compute them in bytes that wrap around. Only its quantiser keeps them in range; neither its packers nor its engine
/// look (omniserve issues 59 and 60), so that third-party weights can be silently wrong there. Everything here that reads or writes its
/// format looks.
public struct IntermediateRange: Hashable, Sendable {
    public let lowest: Int
    public let highest: Int
    /// Elements outside −128…127.
    public let violations: Int
    /// The first row that has one.
    public let firstViolatingRow: Int?

    /// Every byte fits.
    public var fits: Bool { violations == 0 }

    /// Looks at all codes.
    /// - Parameters:
    ///   - weight: 4-bit unsigned codes in groups, with `scales` = s2, `offsets` = zero and `channelScales` = s1.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidArgument` for a weight of another form, an s2 that is no integer of 0…127, and a zero that is no integer of
    ///   −127…128, which is stored as the signed byte −zero.
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
