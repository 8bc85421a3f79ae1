/// Adds the time since the last lap to a part of a run.
package struct LapClock<Parts> {
    package private(set) var seconds: Parts
    private let clock = ContinuousClock()
    private var last: ContinuousClock.Instant

    /// Starts the first lap.
    /// - Parameter seconds: what the parts have so far.
    package init(_ seconds: Parts) {
        self.seconds = seconds
        last = clock.now
    }

    package mutating func lap(_ part: WritableKeyPath<Parts, Double>) {
        let now = clock.now
        seconds[keyPath: part] += (now - last) / .seconds(1)
        last = now
    }
}

typealias Stopwatch = LapClock<StageSeconds>

extension LapClock<StageSeconds> {
    init() { self.init(StageSeconds()) }
}
