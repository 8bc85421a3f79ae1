import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Top-p by a full sort in `Double`, which the heap must reproduce.
func sortedTopP(_ weights: [Float], mass: Double, minimumCount: Int = 0, forced: Set<Int> = []) -> [Int] {
    let total = weights.reduce(0) { $0 + Double($1) }
    var kept = forced
    var sum = forced.sorted().reduce(0) { $0 + Double(weights[$1]) }
    let order = weights.indices.filter { !forced.contains($0) }
        .sorted { (weights[$0], -$0) > (weights[$1], -$1) }
    for index in order {
        let isWanted = sum < mass * total && weights[index] > 0
        if !isWanted && kept.count >= minimumCount { break }
        kept.insert(index)
        sum += Double(weights[index])
    }
    return kept.sorted()
}

@Suite("Selection: top-p")
struct TopPTests {
    @Test("the element that crosses the mass is kept, and nothing after it")
    func crossing() throws {
        let weights: [Float] = [0.125, 0.5, 0.25, 0.125]
        #expect(try TopP.select(weights: weights.span, mass: 0.5) == [1])
        #expect(try TopP.select(weights: weights.span, mass: 0.51) == [1, 2])
        #expect(try TopP.select(weights: weights.span, mass: 0.75) == [1, 2])
        // Of equal weights, the lower index comes first.
        #expect(try TopP.select(weights: weights.span, mass: 0.8) == [0, 1, 2])
        #expect(try TopP.select(weights: weights.span, mass: 1) == [0, 1, 2, 3])
    }

    @Test("mass 0 keeps what is forced or asked for; mass 1 keeps no zeros")
    func extremes() throws {
        let weights: [Float] = [0, 3, 0, 1, 0]
        #expect(try TopP.select(weights: weights.span, mass: 0) == [])
        #expect(try TopP.select(weights: weights.span, mass: 0, forced: [4, 2, 4]) == [2, 4])
        #expect(try TopP.select(weights: weights.span, mass: 0, minimumCount: 3) == [0, 1, 3])
        #expect(try TopP.select(weights: weights.span, mass: 1) == [1, 3])
        #expect(try TopP.select(weights: weights.span, mass: 1, minimumCount: 9) == [0, 1, 2, 3, 4])
        #expect(try TopP.select(weights: [Float](repeating: 0, count: 5).span, mass: 1) == [])
        #expect(try TopP.select(weights: [Float]().span, mass: 0.5) == [])
        #expect(try TopP.select(weights: [-0.0, 0].span, mass: 1, minimumCount: 1) == [0])
    }

    @Test("forced elements count in the mass")
    func forcedMass() throws {
        let weights: [Float] = [1, 4, 2, 3]
        #expect(try TopP.select(weights: weights.span, mass: 0.4, forced: [1]) == [1])
        #expect(try TopP.select(weights: weights.span, mass: 0.45, forced: [0]) == [0, 1])
    }

    @Test("equals a full sort", arguments: [1, 2, 3, 7, 63, 64, 65, 200, 1000])
    func fullSort(_ count: Int) throws {
        var generator = SplitMix64(seed: UInt64(count))
        for trial in 0..<20 {
            // In odd trials, few distinct values cause many ties.
            let weights = (0..<count).map { _ in
                let x = generator.uniform()
                return trial % 2 == 0 ? x * x * x : (4 * x).rounded(.down)
            }
            let forced = Set((0..<count).filter { _ in generator.uniform() < 0.1 })
            for mass in [0, 0.1, 0.5, 0.9, 0.99, 1] {
                let minimum = Int(generator.next() % 4)
                let selected = try TopP.select(
                    weights: weights.span, mass: mass, minimumCount: minimum, forced: forced.sorted())
                #expect(selected == sortedTopP(weights, mass: mass, minimumCount: minimum, forced: forced), "mass \(mass)")
            }
        }
    }

    @Test("bad arguments are refused")
    func errors() {
        let weights: [Float] = [1, 2]
        for mass in [-0.1, 1.1, .nan] {
            expectError(.invalidArgument, "mass") {
                _ = try TopP.select(weights: weights.span, mass: mass)
            }
            expectError(.invalidArgument, "mass") {
                _ = try TopP.bisection(weights: weights.span, mass: mass)
            }
        }
        for weight in [-1, .nan, .infinity] as [Float] {
            expectError(.invalidArgument, "weights[1]") {
                _ = try TopP.select(weights: [1, weight].span, mass: 0.5)
            }
            expectError(.invalidArgument, "weights[1]") {
                _ = try TopP.bisection(weights: [1, weight].span, mass: 0.5)
            }
        }
        expectError(.invalidArgument, "minimumCount") {
            _ = try TopP.select(weights: weights.span, mass: 0.5, minimumCount: -1)
        }
        expectError(.invalidArgument, "forced[1]") {
            _ = try TopP.select(weights: weights.span, mass: 0.5, forced: [0, 2])
        }
        expectError(.invalidArgument, "epsilon") {
            _ = try TopP.bisection(weights: weights.span, mass: 0.5, epsilon: .nan)
        }
        expectError(.invalidShape, "weights") {
            _ = try TopP.bisection(weights: [Float]().span, mass: 0.5)
        }
    }

    // MARK: - Bisection

    @Test("bisection keeps 1, 3 and 4 of the specification's weights", arguments: [(0.5, 1), (0.85, 3), (0.95, 4)])
    func bisectionVector(_ mass: Double, _ count: Int) throws {
        let weights: [Float] = [0.5, 0.2, 0.15, 0.1, 0.05]
        let found = try TopP.bisection(weights: weights.span, mass: mass)
        #expect(found.indices(in: weights.span) == Array(0..<count))
        #expect(found.rounds >= 1)
    }

    @Test("a first weight that is no sink keeps everything in the kernel, and not from the maximum")
    func bisectionWithoutSink() throws {
        let weights: [Float] = [0.05, 0.5, 0.2, 0.15, 0.1]
        #expect(try TopP.bisection(weights: weights.span, mass: 0.5).indices(in: weights.span) == [0, 1, 2, 3, 4])
        let paper = try TopP.bisection(weights: weights.span, mass: 0.5, upperBound: .maximum)
        #expect(paper.indices(in: weights.span) == [1])
    }

    @Test("bisection never keeps less than the mass, and nothing that the mass does not need", arguments: [1, 2, 5, 64, 1000])
    func bisectionInvariant(_ count: Int) throws {
        var generator = SplitMix64(seed: 5 + UInt64(count))
        for _ in 0..<20 {
            var weights = (0..<count).map { _ in
                let x = generator.uniform()
                return x * x * x * x
            }
            let total = weights.reduce(0, +)
            if total > 0 { for index in weights.indices { weights[index] /= total } }
            for mass in [0, 0.3, 0.9] {
                let found = try TopP.bisection(weights: weights.span, mass: mass, upperBound: .maximum)
                let kept = found.indices(in: weights.span)
                let sum = kept.reduce(0) { $0 + Double(weights[$1]) }
                #expect(sum >= mass - 1e-6)
                // Without the smallest kept weight, and its equals within epsilon, the sum is too small.
                let least = kept.map { weights[$0] }.min() ?? 0
                let sure = kept.filter { weights[$0] > least + 1.1e-5 }.reduce(0) { $0 + Double(weights[$1]) }
                #expect(sure < mass + 1e-6 || mass == 0, "\(count), \(mass)")
            }
        }
        // The search also ends for weights that are not probabilities.
        _ = try TopP.bisection(weights: [Float.greatestFiniteMagnitude, 1].span, mass: 1, epsilon: 0)
        _ = try TopP.bisection(weights: [0, 0].span, mass: 1, epsilon: 0)
        _ = try TopP.bisection(weights: [Float.leastNonzeroMagnitude, 3].span, mass: 0.5, epsilon: 0)
    }
}
