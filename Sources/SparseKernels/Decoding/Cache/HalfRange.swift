internal import KernelInterface
internal import Synchronization

// Checks of elements for caches that store something about them in half precision.

extension KVCacheConfiguration {
    /// Whether keys must fit half precision, because their scales, bounds or estimates are stored in it.
    var boundsKeys: Bool { keyFormat.isQuantized || metadata != nil || keepsKeyEstimates }
    /// Whether values must fit half precision, because their scales are stored in it.
    var boundsValues: Bool { valueFormat.isQuantized }
}

extension TensorView where Element: AttentionElement {
    /// Throws `.invalidArgument` naming the first element that is not finite or has a magnitude above 65504.
    func requireHalfRange(named name: String, on pool: WorkerPool) throws(SparseKernelsError) {
        if !HalfRangeScan.findsAny(in: AttentionOperand(self), on: pool) { return }
        for head in 0..<heads {
            for token in 0..<tokens {
                for channel in 0..<channels {
                    let element = self[head, token, channel].floatValue
                    try require(
                        abs(element) <= HalfRangeScan.limit, .invalidArgument, name,
                        expected: "finite elements of magnitude up to \(Int(HalfRangeScan.limit)), as half precision has",
                        actual: "\(element) at (\(head), \(token), \(channel))")
                }
            }
        }
    }
}

/// Looks for elements beyond the range of half precision. A task is one head.
private struct HalfRangeScan: PoolCall {
    /// The largest finite number of half precision.
    static let limit: Float = 65504

    let operand: AttentionOperand
    let found: UnsafePointer<Atomic<Bool>>

    static func findsAny(in operand: AttentionOperand, on pool: WorkerPool) -> Bool {
        let geometry = operand.geometry
        let found = Atomic(false)
        withUnsafePointer(to: found) { found in
            pool.run(
                HalfRangeScan(operand: operand, found: found), tasks: geometry.heads,
                work: geometry.heads * geometry.tokens * geometry.channels)
        }
        return found.load(ordering: .relaxed)
    }

    func perform(task head: Int, scratch: UnsafeMutableRawPointer) {
        let rows = operand.rows(head: head)
        for token in 0..<operand.geometry.tokens {
            let row = rows.base + token * rows.stride * operand.type.byteCount
            if exceeds(row, operand.geometry.channels) {
                found.pointee.store(true, ordering: .relaxed)
                return
            }
        }
    }

    /// Compares magnitudes as integers, which have the order of the numbers, with infinities and NaN above all. There is no
    /// early exit, so that the compiler can vectorise the loops.
    private func exceeds(_ row: UnsafeRawPointer, _ count: Int) -> Bool {
        switch operand.type {
        case .float32:
            let elements = row.assumingMemoryBound(to: UInt32.self)
            var largest: UInt32 = 0
            for i in 0..<count { largest = max(largest, elements[i] & 0x7fff_ffff) }
            return largest > Self.limit.bitPattern
        case .float16:
            return largestMagnitude(row, count) > 0x7bff
        case .bfloat16:
            // The largest bfloat16 below the limit has the limit's upper bits.
            return largestMagnitude(row, count) > Self.limit.bitPattern >> 16
        }
    }

    private func largestMagnitude(_ row: UnsafeRawPointer, _ count: Int) -> UInt32 {
        let elements = row.assumingMemoryBound(to: UInt16.self)
        var largest: UInt16 = 0
        for i in 0..<count { largest = max(largest, elements[i] & 0x7fff) }
        return UInt32(largest)
    }
}
