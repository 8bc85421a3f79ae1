/// The statistics of repeated measurements.
///
/// Quote the median: one interrupt changes a mean, and a minimum is not typical of any machine.
public struct Summary: Sendable, Equatable {
    public var median: Double
    public var min: Double
    public var max: Double

    public init(median: Double, min: Double, max: Double) {
        self.median = median
        self.min = min
        self.max = max
    }

    /// The samples must not be empty.
    public init(_ samples: [Double]) {
        precondition(!samples.isEmpty, "a summary needs at least one sample")
        let sorted = samples.sorted()
        let middle = sorted.count / 2
        median = sorted.count.isMultiple(of: 2) ? (sorted[middle - 1] + sorted[middle]) / 2 : sorted[middle]
        min = sorted[0]
        max = sorted[sorted.count - 1]
    }

    /// Half the range over the median; 0 for a median of 0.
    public var relativeSpread: Double {
        median == 0 ? 0 : (max - min) / 2 / median
    }
}

// MARK: - Sampler

/// Calls a closure repeatedly and records the time of each call, in seconds.
public struct Sampler: Sendable {
    /// Untimed calls before the others, which fault pages in, wake the threads and let the clock of the core settle.
    public var warmUpRounds: Int
    /// Sampling continues until both this number of rounds and the budget are reached.
    public var minimumRounds: Int
    public var budget: Duration
    /// Sampling never exceeds this number of rounds.
    public var maximumRounds: Int
    /// A call shorter than this is timed in batches of about this duration, because reading the clock takes about 40 ns, 0.2 %
    /// of 20 µs.
    public var minimumSample: Duration

    public init(
        warmUpRounds: Int = 2, minimumRounds: Int = 7, budget: Duration = .seconds(1), maximumRounds: Int = 10_000,
        minimumSample: Duration = .microseconds(20)
    ) {
        precondition(minimumRounds >= 1 && maximumRounds >= minimumRounds, "rounds: \(minimumRounds)...\(maximumRounds)")
        self.warmUpRounds = warmUpRounds
        self.minimumRounds = minimumRounds
        self.budget = budget
        self.maximumRounds = maximumRounds
        self.minimumSample = minimumSample
    }

    /// Seconds per call, one sample per round. `eachRound` runs between the rounds, outside the timing, for progress.
    public func sample(eachRound: () -> Void = {}, _ body: () -> Void) -> [Double] {
        withoutActuallyEscaping(body) { body in
            interleave([Contender("", body)], eachRound: eachRound).samples[0]
        }
    }

    /// Runs the contenders in turn, A B A B …, so that a drifting clock or a busy neighbour affects all of them. Ratios within
    /// a round are then more accurate than a ratio of two medians taken minutes apart.
    public func interleave(_ contenders: [Contender], eachRound: () -> Void = {}) -> InterleavedSamples {
        let calls = contenders.map { contender in
            for _ in 0..<warmUpRounds { contender.body() }
            return callsPerSample(contender)
        }
        if contenders.isEmpty { return InterleavedSamples(names: [], samples: []) }
        let clock = ContinuousClock()
        let start = clock.now
        var samples = [[Double]](repeating: [], count: contenders.count)
        var round = 0
        while round < maximumRounds && (round < minimumRounds || clock.now - start < budget) {
            for index in contenders.indices {
                let seconds = Self.seconds(contenders[index], calls: calls[index])
                samples[index].append(seconds / Double(calls[index]))
            }
            round += 1
            eachRound()
        }
        return InterleavedSamples(names: contenders.map(\.name), samples: samples)
    }

    /// Doubles the batch until it lasts long enough.
    private func callsPerSample(_ contender: Contender) -> Int {
        guard contender.repeats else { return 1 }
        let target = minimumSample / .seconds(1)
        var calls = 1
        while target > 0, calls < 1 << 20, Self.seconds(contender, calls: calls) < target { calls *= 2 }
        return calls
    }

    private static func seconds(_ contender: Contender, calls: Int) -> Double {
        let clock = ContinuousClock()
        let start = clock.now
        for _ in 0..<calls { contender.body() }
        return (clock.now - start) / .seconds(1)
    }
}

/// A closure with a name, to be measured beside others. It must be possible to call it any number of times.
public struct Contender {
    public let name: String
    /// Whether short calls may be timed in batches. They may not when something has to happen before each call.
    public let repeats: Bool
    public let body: () -> Void

    public init(_ name: String, repeats: Bool = true, _ body: @escaping () -> Void) {
        self.name = name
        self.repeats = repeats
        self.body = body
    }
}

/// Samples of several contenders, taken side by side: `samples[contender][round]` in seconds per call.
public struct InterleavedSamples: Sendable {
    public let names: [String]
    public let samples: [[Double]]

    public init(names: [String], samples: [[Double]]) {
        precondition(names.count == samples.count && Set(samples.map(\.count)).count <= 1, "one sample per name and round")
        self.names = names
        self.samples = samples
    }

    /// The summary of a contender; nil for a name that was not measured.
    public func summary(of name: String) -> Summary? {
        names.firstIndex(of: name).map { Summary(samples[$0]) }
    }

    /// The factor by which `name` is faster than `baseline`: the median of the ratios of the rounds.
    public func speedup(of name: String, over baseline: String) -> Double {
        let own = samples[index(of: name)]
        let other = samples[index(of: baseline)]
        return Summary(zip(own, other).map { $1 / $0 }).median
    }

    private func index(of name: String) -> Int {
        guard let index = names.firstIndex(of: name) else { preconditionFailure("no contender \(name) among \(names)") }
        return index
    }
}
