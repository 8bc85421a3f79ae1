// The layouts of LongVILA: pieces in order, and the zigzag of causal rings.

extension TokenShards {
    /// Cuts a sequence in order into shards of nearly the same length: the first ranks have one unit more where it does not divide.
    ///
    /// - Parameters:
    ///   - length: the number of tokens, 0 or more.
    ///   - ranks: the number of shards.
    ///   - alignment: the tokens of a unit, such as a page of a cache: shards begin at multiples of it.
    /// - Throws: `.invalidArgument` for a negative length, no rank or more than ``largestRankCount``, and an alignment below 1.
    public static func contiguous(length: Int, ranks: Int, alignment: Int = 1) throws(SparseKernelsError) -> Self {
        try require(length >= 0, "length", "0 or more", length)
        try require(ranks: ranks, "ranks")
        try require(alignment >= 1, "alignment", "at least 1", alignment)
        let units = UnitShares(units: UnitShares.units(of: length, alignment), parts: ranks)
        var ranges: [[Range<Int>]] = []
        for rank in 0..<ranks {
            let tokens = UnitShares.tokens(units[rank], alignment, length)
            ranges.append(tokens.isEmpty ? [] : [tokens])
        }
        return try TokenShards(length: length, ranges: ranges)
    }

    /// Cuts a sequence in order into shards of given lengths.
    ///
    /// - Parameter lengths: the tokens of each rank, which may be 0.
    /// - Throws: `.invalidArgument` for a negative length, a sum that overflows, and no rank or more than ``largestRankCount``.
    public static func contiguous(lengths: [Int]) throws(SparseKernelsError) -> Self {
        var (ranges, total): ([[Range<Int>]], Int) = ([], 0)
        for (rank, length) in lengths.enumerated() {
            let (sum, overflow) = total.addingReportingOverflow(length)
            try require(length >= 0 && !overflow, "lengths[\(rank)]", "0 or more, with a sum that fits", length)
            ranges.append(length == 0 ? [] : [total..<sum])
            total = sum
        }
        return try TokenShards(length: total, ranges: ranges)
    }

    /// Gives every rank of a causal ring the same work: the sequence is cut into 2·`ring` chunks, and member r of the ring has chunk r
    /// and chunk 2·`ring` − 1 − r.
    ///
    /// The member is a group of `ulysses` ranks, r·`ulysses`, r·`ulysses` + 1, …, which exchange heads for tokens. They have even
    /// consecutive pieces of the two chunks, so that the exchange puts both together in order.
    ///
    /// Chunks are of nearly the same length: the first have one unit more where the sequence does not divide. The released code of LongVILA
    /// drops tokens there, and with `ulysses` above 1 it gives ranks pieces that the causal ring is wrong for; this does not.
    ///
    /// - Parameters:
    ///   - length: the number of tokens, 0 or more.
    ///   - ulysses: the ranks of a group.
    ///   - ring: the groups of the ring.
    ///   - alignment: the tokens of a unit: pieces begin at multiples of it.
    /// - Throws: `.invalidArgument` for a negative length, a number of ranks below 1 or above ``largestRankCount``, and an alignment below
    ///   1.
    /// - Source: LongVILA (arXiv 2408.10188), section 3.3; the layout for `ulysses` above 1 follows from what the ring needs.
    public static func zigzag(
        length: Int, ulysses: Int, ring: Int, alignment: Int = 1
    ) throws(SparseKernelsError) -> Self {
        try require(length >= 0, "length", "0 or more", length)
        try require(ranks: ulysses, "ulysses")
        try require(ranks: ring, "ring")
        try require(ranks: ulysses * ring, "ulysses · ring")
        try require(alignment >= 1, "alignment", "at least 1", alignment)
        let chunks = UnitShares(units: UnitShares.units(of: length, alignment), parts: 2 * ring)
        var ranges: [[Range<Int>]] = []
        for member in 0..<ring {
            let (first, second) = (chunks[member], chunks[2 * ring - 1 - member])
            let pieces = UnitShares(units: first.count + second.count, parts: ulysses)
            for rank in 0..<ulysses {
                let piece = pieces[rank]
                // Units of the first chunk are 0..<first.count of the two together.
                let head = piece.clamped(to: 0..<first.count)
                let tail = piece.clamped(to: first.count..<first.count + second.count)
                let own = [
                    first.lowerBound + head.lowerBound..<first.lowerBound + head.upperBound,
                    second.lowerBound + tail.lowerBound - first.count..<second.lowerBound + tail.upperBound - first.count,
                ]
                ranges.append(own.map { UnitShares.tokens($0, alignment, length) }.filter { !$0.isEmpty })
            }
        }
        return try TokenShards(length: length, ranges: ranges)
    }
}

/// Units cut into parts of nearly the same size, by quotient and remainder: the first parts have one more.
struct UnitShares {
    let units: Int
    let parts: Int

    subscript(part: Int) -> Range<Int> {
        let (quotient, remainder) = units.quotientAndRemainder(dividingBy: parts)
        let start = part * quotient + min(part, remainder)
        return start..<start + quotient + (part < remainder ? 1 : 0)
    }

    /// The units of some tokens; the last one may be shorter.
    static func units(of length: Int, _ alignment: Int) -> Int {
        let (quotient, remainder) = length.quotientAndRemainder(dividingBy: alignment)
        return remainder == 0 ? quotient : quotient + 1
    }

    /// The tokens of some units.
    static func tokens(_ units: Range<Int>, _ alignment: Int, _ length: Int) -> Range<Int> {
        func token(_ unit: Int) -> Int {
            let (token, overflow) = unit.multipliedReportingOverflow(by: alignment)
            return overflow ? length : min(length, token)
        }
        return token(units.lowerBound)..<token(units.upperBound)
    }
}
