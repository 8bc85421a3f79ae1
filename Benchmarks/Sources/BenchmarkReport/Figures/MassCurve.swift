/// How much attention mass the best blocks of a head have together: the yardstick of every selection.
public struct MassCurve: Sendable {
    /// Largest first.
    private let masses: [Double]
    private let total: Double

    /// - Parameter masses: the mass of every reachable block of the head.
    public init(_ masses: some Sequence<Float>) {
        self.masses = masses.map(Double.init).sorted(by: >)
        total = self.masses.reduce(0, +)
    }

    /// The least fraction of the blocks that has a part `recall` of the mass: blocks taken by mass over all rows of the head, which
    /// no selection row by row can beat.
    public func density(reaching recall: Double) -> Double {
        var count = 0
        var sum = 0.0
        // Rounding of the sum must not ask for blocks without mass.
        let target = recall * total * (1 - 1e-9)
        while count < masses.count && sum < target {
            sum += masses[count]
            count += 1
        }
        return masses.isEmpty ? 0 : Double(count) / Double(masses.count)
    }
}
