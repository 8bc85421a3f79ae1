/// Budgets by number: selects the k largest of a list of scores without sorting them.
///
/// All page rankings of the package use this. Two or three counting passes over order-preserving integers find the k-th largest
/// score. One pass in index order takes the scores above it: the result ascends, and of equal scores the lower indices are
/// taken.
public enum TopK {
    /// The indices of the `count` largest scores, ascending; equal scores by lower index. All if there are no more than
    /// `count`.
    ///
    /// −0 equals 0. NaN ranks above everything, including ∞, and all NaN are equal.
    ///
    /// - Parameters:
    ///   - scores: any numbers.
    ///   - count: at least 0.
    /// - Throws: `.invalidArgument` for a negative count, `.invalidShape` for 2³¹ scores or more.
    /// - Complexity: O(n), at most six passes for any scores.
    /// - Scratch: 8 bytes per score and 8 KiB.
    public static func select(scores: Span<Float>, count: Int) throws(SparseKernelsError) -> [Int] {
        try require(count >= 0, .invalidArgument, "count", expected: "at least 0", actual: "\(count)")
        try require(
            scores.count < 1 << 31, .invalidShape, "scores", expected: "fewer than 2³¹", actual: "\(scores.count)")
        if count >= scores.count { return Array(0..<scores.count) }
        if count == 0 { return [] }
        let scratch = UnsafeMutableRawPointer.allocate(
            byteCount: scratchByteCount(scores.count) + scores.count * MemoryLayout<Int32>.stride, alignment: 64)
        defer { scratch.deallocate() }
        let keys = (scratch + scratchByteCount(scores.count)).bindMemory(to: Int32.self, capacity: scores.count)
        for index in 0..<scores.count { keys[index] = ScoreOrder.key(scores[index]) }
        let threshold = threshold(keys, count: scores.count, keeping: count, scratch: scratch)
        var (result, ties) = ([Int](), threshold.ties)
        result.reserveCapacity(count)
        for index in 0..<scores.count where threshold.takes(keys[index], &ties) { result.append(index) }
        return result
    }

    /// The indices of the `count` largest scores that are not excluded, ascending; equal scores by lower index. All that are not
    /// excluded if there are no more than `count`.
    ///
    /// Scores are ranked as ``select(scores:count:)`` ranks them; what an excluded score is does not matter. Selections in several
    /// passes without repeats exclude what earlier passes took.
    ///
    /// - Parameters:
    ///   - scores: any numbers.
    ///   - count: at least 0.
    ///   - excluded: one flag per score.
    /// - Throws: `.invalidArgument` for a negative count, `.invalidShape` for 2³¹ scores or more, or another number of flags.
    /// - Complexity: O(n), at most seven passes for any scores.
    /// - Scratch: 8 bytes per score and 8 KiB.
    public static func select(
        scores: Span<Float>, count: Int, excluding excluded: Span<Bool>
    ) throws(SparseKernelsError) -> [Int] {
        try require(count >= 0, .invalidArgument, "count", expected: "at least 0", actual: "\(count)")
        try require(
            scores.count < 1 << 31, .invalidShape, "scores", expected: "fewer than 2³¹", actual: "\(scores.count)")
        try require(
            excluded.count == scores.count, .invalidShape, "excluded", expected: "one flag per score (\(scores.count))",
            actual: "\(excluded.count)")
        if count == 0 { return [] }
        let scratch = UnsafeMutableRawPointer.allocate(
            byteCount: scratchByteCount(scores.count) + scores.count * MemoryLayout<Int32>.stride, alignment: 64)
        defer { scratch.deallocate() }
        // The keys of what is not excluded, without gaps.
        let keys = (scratch + scratchByteCount(scores.count)).bindMemory(to: Int32.self, capacity: scores.count)
        var candidates = 0
        for index in 0..<scores.count where !excluded[index] {
            keys[candidates] = ScoreOrder.key(scores[index])
            candidates += 1
        }
        if count >= candidates { return (0..<scores.count).filter { !excluded[$0] } }
        let threshold = threshold(keys, count: candidates, keeping: count, scratch: scratch)
        var (result, ties, candidate) = ([Int](), threshold.ties, 0)
        result.reserveCapacity(count)
        for index in 0..<scores.count where !excluded[index] {
            if threshold.takes(keys[candidate], &ties) { result.append(index) }
            candidate += 1
        }
        return result
    }

    /// The condition to be kept: keys above `key`, and the first `ties` keys equal to it.
    struct Threshold {
        let key: Int32
        let ties: Int

        /// Whether an element is kept. Call it in index order, with a copy of `ties` that it counts down.
        @inline(__always)
        func takes(_ other: Int32, _ ties: inout Int) -> Bool {
            if other < key { return false }
            if other > key { return true }
            ties &-= 1
            return ties >= 0
        }
    }

    /// Bits per digit. 2048 counters are 8 KiB, which leaves room for the keys in the first-level cache.
    private static let digitBits = 11

    /// Bytes of scratch for `threshold`: the counters and a copy of every key.
    static func scratchByteCount(_ count: Int) -> Int { (1 << digitBits + count) * MemoryLayout<Int32>.stride }

    /// Finds the k-th largest of some keys of `ScoreOrder`.
    ///
    /// Keys are counted by their distance from the smallest one, with one counter per step of distances. The step with the k-th
    /// largest key is cut again, at most twice more, until a step is one key. Leading bits would do worse than distances,
    /// because scores of one head often have the same exponent.
    ///
    /// - Parameters:
    ///   - keys: `count` keys.
    ///   - kept: k, 1…`count`.
    ///   - scratch: `scratchByteCount(count)` bytes.
    static func threshold(
        _ keys: UnsafePointer<Int32>, count: Int, keeping kept: Int, scratch: UnsafeMutableRawPointer
    ) -> Threshold {
        let counters = scratch.bindMemory(to: Int32.self, capacity: 1 << digitBits)
        let candidates = (scratch + 1 << digitBits * MemoryLayout<Int32>.stride).bindMemory(to: Int32.self, capacity: count)
        var (low, high) = (Int32.max, Int32.min)
        for index in 0..<count {
            low = min(low, keys[index])
            high = max(high, keys[index])
        }
        var (rest, restCount, wanted) = (keys, count, kept)
        while true {
            let range = UInt32(bitPattern: high &- low)
            let shift = UInt32(max(0, 32 - range.leadingZeroBitCount - digitBits))
            counters.update(repeating: 0, count: 1 << digitBits)
            for index in 0..<restCount { counters[Int(UInt32(bitPattern: rest[index] &- low) &>> shift)] &+= 1 }
            var digit = Int(range &>> shift)
            while Int(counters[digit]) < wanted {
                wanted &-= Int(counters[digit])
                digit &-= 1
            }
            low = low &+ Int32(truncatingIfNeeded: digit &<< Int(shift))
            if shift == 0 { return Threshold(key: low, ties: wanted) }
            // After the first cut this works in place: the written elements never overtake the read ones.
            let width = (UInt32(1) &<< shift) &- 1
            var found = 0
            for index in 0..<restCount {
                let key = rest[index]
                if UInt32(bitPattern: key &- low) <= width {
                    candidates[found] = key
                    found &+= 1
                }
            }
            (rest, restCount) = (UnsafePointer(candidates), found)
            high = low &+ Int32(truncatingIfNeeded: Int(min(width, UInt32(bitPattern: high &- low))))
        }
    }

    /// Writes the positions of the kept keys, ascending, each increased by `offset`.
    static func write(
        _ threshold: Threshold, of keys: UnsafePointer<Int32>, count: Int, offset: Int,
        to positions: UnsafeMutablePointer<Int32>
    ) {
        var (written, ties) = (0, threshold.ties)
        for index in 0..<count where threshold.takes(keys[index], &ties) {
            positions[written] = Int32(truncatingIfNeeded: index &+ offset)
            written &+= 1
        }
    }
}
