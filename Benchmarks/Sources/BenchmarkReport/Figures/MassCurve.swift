/// The attention mass of the best blocks of a head, as the measure for every selection.
public struct MassCurve: Sendable {
    /// The masses, largest first.
    private let masses: [Double]
    private let total: Double

    /// - Parameter masses: the mass of every reachable block of the head.
    public init(_ masses: some Sequence<Float>) {
        self.masses = masses.map(Double.init).sorted(by: >)
        total = self.masses.reduce(0, +)
    }

    /// The smallest fraction of the blocks that has the fraction `recall` of the mass. Blocks are taken by mass over all rows
    /// of the head, so no row-by-row selection can do better.
    public func density(reaching recall: Double) -> Double {
        var count = 0
        var sum = 0.0
        // The tolerance keeps rounding of the sum from requiring blocks without mass.
        let target = recall * total * (1 - 1e-9)
        while count < masses.count && sum < target {
            sum += masses[count]
            count += 1
        }
        return masses.isEmpty ? 0 : Double(count) / Double(masses.count)
    }
}
