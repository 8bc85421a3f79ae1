/// Ranks as a grid: Ulysses groups, inside of which heads are exchanged for tokens, times a ring over the groups.
///
/// Rank u + r·`ulysses` has place u in group r, so that the ranks of a group are neighbours: those of one machine, where
/// machines have several.
///
/// ```swift
/// let grid = try RankGrid(ranks: 8, ulysses: 2)
/// grid.ring                   // 4
/// grid.ranks(ofGroup: 1)      // 2..<4
/// ```
///
/// Source: LongVILA (arXiv 2408.10188), section 3.3, "2D attention".
public struct RankGrid: Hashable, Sendable {
    /// The ranks of a group.
    public let ulysses: Int
    /// The groups of the ring.
    public let ring: Int

    /// - Parameters:
    ///   - ranks: at least 1.
    ///   - ulysses: the ranks of a group, which divides `ranks`.
    /// - Throws: `.invalidArgument`.
    public init(ranks: Int, ulysses: Int) throws(SparseKernelsError) {
        guard ranks >= 1 else {
            throw SparseKernelsError(.invalidArgument, "ranks", expected: "at least 1", actual: "\(ranks)")
        }
        guard ulysses >= 1, ranks % ulysses == 0 else {
            throw SparseKernelsError(
                .invalidArgument, "ulysses", expected: "a divisor of the \(ranks) ranks", actual: "\(ulysses)")
        }
        self.ulysses = ulysses
        ring = ranks / ulysses
    }

    public var ranks: Int { ulysses * ring }

    /// The place of a rank in its group.
    public func place(of rank: Int) -> Int { rank % ulysses }
    /// The group of a rank.
    public func group(of rank: Int) -> Int { rank / ulysses }
    /// The rank at a place of a group.
    public func rank(place: Int, group: Int) -> Int { place + group * ulysses }
    /// The ranks of a group.
    public func ranks(ofGroup group: Int) -> Range<Int> { group * ulysses..<(group + 1) * ulysses }
}
