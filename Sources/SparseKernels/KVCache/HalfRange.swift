internal import KernelInterface

// Which elements a cache takes, when it keeps something about them in half precision.

extension KVCacheConfiguration {
    /// Whether keys must fit half precision: their scales, bounds or estimates do.
    var boundsKeys: Bool { keyFormat.isQuantized || metadata != nil || keepsKeyEstimates }
    /// Whether values must fit half precision: their scales do.
    var boundsValues: Bool { valueFormat.isQuantized }
}

extension TensorView where Element: AttentionElement {
    /// Throws `.invalidArgument` with the first element that is not finite or of magnitude above 65504.
    func requireHalfRange(named name: String, on pool: WorkerPool) throws(SparseKernelsError) {
        guard let (head, token) = HalfRangeScan(AttentionOperand(self)).firstRow(on: pool) else { return }
        let limit = HalfRangeScan.limit
        let channel = (0..<channels).first { !(abs(self[head, token, $0].floatValue) <= limit) } ?? 0
        throw SparseKernelsError(
            .invalidArgument, name, expected: "finite elements of magnitude up to \(Int(limit)), as half precision has",
            actual: "\(self[head, token, channel].floatValue) at (\(head), \(token), \(channel))")
    }
}

/// Looks for elements beyond the range of half precision. A task is one head.
private struct HalfRangeScan {
    /// The largest finite number of half precision.
    static let limit: Float = 65504

    let operand: AttentionOperand
    /// Per head, the first token with such an element, or −1.
    var found: UnsafeMutablePointer<Int>?

    init(_ operand: AttentionOperand) { self.operand = operand }

    func firstRow(on pool: WorkerPool) -> (head: Int, token: Int)? {
        let geometry = operand.geometry
        return withUnsafeTemporaryAllocation(of: Int.self, capacity: geometry.heads) { found in
            var call = self
            call.found = found.baseAddress
            withUnsafePointer(to: call) { call in
                pool.run(
                    tasks: geometry.heads, work: geometry.heads * geometry.tokens * geometry.channels, scratchByteCount: 0,
                    context: call
                ) { context, head, _ in
                    let call = context.assumingMemoryBound(to: HalfRangeScan.self).pointee
                    call.found![head] = call.firstToken(head: head)
                }
            }
            guard let head = found.firstIndex(where: { $0 >= 0 }) else { return nil }
            return (head, found[head])
        }
    }

    private func firstToken(head: Int) -> Int {
        let rows = operand.rows(head: head)
        for token in 0..<operand.geometry.tokens {
            let row = rows.base + token * rows.stride * operand.type.byteCount
            if exceeds(row, operand.geometry.channels) { return token }
        }
        return -1
    }

    /// On magnitudes as integers, which have the order of the numbers, with infinities and NaN above all. No early exit, so that the
    /// loops become vectors.
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
