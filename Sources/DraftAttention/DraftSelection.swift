public import SparseKernels

/// Chooses entries of a draft map: one threshold per head, over all rows together.
///
/// With S windows, n = S² entries and a sparsity ρ, the default keeps the n − ⌊ρ·n⌋ largest entries of a head, equal ones from
/// the first on, and the first largest entry of every row, so that no query loses the whole video. A row with a NaN keeps all of
/// its entries and counts no more, because nothing can be said of it.
///
/// The released rule keeps the entries that are not below the kth smallest, k = ⌊(1 − (1 − ρ))·n⌋ in double precision. That is
/// one more than n − k, and more with ties. k = 0 keeps all, k = n nothing. Rows may keep nothing, and NaN is not kept.
public struct DraftSelection: Hashable, Sendable {
    /// ρ, the part of the draft map that is left out.
    public let sparsity: Double
    /// Whether the released rule decides.
    public let isReleased: Bool

    /// - Throws: `.invalidArgument` for a sparsity outside 0…1.
    public init(sparsity: Double, isReleased: Bool = false) throws(SparseKernelsError) {
        try require(
            sparsity >= 0 && sparsity <= 1, .invalidArgument, "sparsity", expected: "from 0 to 1", actual: "\(sparsity)")
        self.sparsity = sparsity
        self.isReleased = isReleased
    }

    /// The kept entries, 1 or 0, `[heads, rows, columns]` as the map.
    ///
    /// - Parameters:
    ///   - map: the draft map; larger is more important.
    ///   - pool: the threads to use, one head each.
    /// - Throws: `.invalidShape` for a head of 2³¹ entries or more.
    /// - Complexity: O(entries). Memory: 16 bytes per entry of the heads in work.
    public func callAsFunction(
        _ map: BlockScores, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<UInt8> {
        let (rows, columns) = (map.grid.blockRows, map.grid.blockColumns)
        try require(
            rows * columns < 1 << 31, .invalidShape, "map", expected: "fewer than 2³¹ entries per head",
            actual: "\(rows) × \(columns)")
        var kept = try Tensor<UInt8>(zeros: map.values.shape)
        if kept.count == 0 { return kept }
        var span = kept.mutableSpan
        // Pointers are used only until this call returns, and both tensors outlive it.
        span.withUnsafeMutableBufferPointer { kept in
            map.values.span.withUnsafeBufferPointer { values in
                let call = Call(
                    selection: self, rows: rows, columns: columns, values: values.baseAddress!, kept: kept.baseAddress!)
                pool.run(call, tasks: map.heads, work: 8 * values.count)
            }
        }
        return kept
    }

    /// One call. A task is a head.
    private struct Call: PoolCall {
        let selection: DraftSelection
        let rows: Int
        let columns: Int
        let values: UnsafePointer<Float>
        let kept: UnsafeMutablePointer<UInt8>

        func perform(task: Int, scratch: UnsafeMutableRawPointer) {
            let count = rows * columns
            let values = UnsafeBufferPointer(start: values + task * count, count: count)
            let kept = kept + task * count
            if selection.isReleased {
                selectAsReleased(values, kept)
            } else {
                select(values, kept)
            }
        }

        private func selectAsReleased(_ values: UnsafeBufferPointer<Float>, _ kept: UnsafeMutablePointer<UInt8>) {
            let cut = Int((1.0 - (1 - selection.sparsity)) * Double(values.count))
            if cut >= values.count { return }
            // NaN ranks above all numbers, so the cut-th smallest is the smallest number among the largest, if there is one.
            var threshold = -Float.infinity
            if cut > 0 {
                threshold = .nan
                for index in Self.largest(values, count: values.count - cut + 1) where !(values[index] >= threshold) {
                    if !values[index].isNaN { threshold = values[index] }
                }
            }
            for index in 0..<values.count { kept[index] = cut <= 0 || values[index] >= threshold ? 1 : 0 }
        }

        private func select(_ values: UnsafeBufferPointer<Float>, _ kept: UnsafeMutablePointer<UInt8>) {
            var ordered: [Int] = []
            for row in 0..<rows {
                let entries = row * columns..<(row + 1) * columns
                var best = entries.lowerBound
                var hasNaN = false
                for index in entries {
                    hasNaN = hasNaN || values[index].isNaN
                    if values[index] > values[best] { best = index }
                }
                if hasNaN {
                    for index in entries { kept[index] = 1 }
                } else {
                    kept[best] = 1
                    ordered.append(row)
                }
            }
            if ordered.count == rows {
                keep(values, kept) { $0 }
                return
            }
            let rest = ordered.flatMap { row in values[row * columns..<(row + 1) * columns] }
            rest.withUnsafeBufferPointer { rest in
                keep(rest, kept) { ordered[$0 / columns] * columns + $0 % columns }
            }
        }

        private func keep(
            _ values: UnsafeBufferPointer<Float>, _ kept: UnsafeMutablePointer<UInt8>, at position: (Int) -> Int
        ) {
            let dropped = Int(selection.sparsity * Double(values.count))
            for index in Self.largest(values, count: values.count - dropped) { kept[position(index)] = 1 }
        }

        /// The indices of the `count` largest values, which are fewer than 2³¹.
        private static func largest(_ values: UnsafeBufferPointer<Float>, count: Int) -> [Int] {
            try! TopK.select(scores: values.span, count: count)
        }
    }
}
