import Foundation

/// The progress of a long run, on standard error: one line that is rewritten in place on a terminal, and a plain line every ten
/// seconds elsewhere (a log, a pipe). It never writes to standard output, which may be a file for a program.
///
/// It has no thread and no timer, which would disturb the timing of a kernel. It shows something only when it is called, so
/// call `tick()` between rounds. It is not thread-safe.
public final class ProgressLine {
    private let total: Int
    /// The work of all cases, in any unit that is proportional to time.
    private let work: Double
    private let isTerminal: Bool
    private let width: Int
    private let write: (String) -> Void
    private let now: () -> Duration
    private let start: Duration
    private var done = 0
    private var workDone = 0.0
    /// The work of cases that took no time, which says nothing about the others.
    private var workSkipped = 0.0
    private var current = ""
    private var lastShown: Duration?
    private var isVisible = false

    /// A shorter run shows no plain line.
    private static let patience = Duration.seconds(2)
    private static let plainInterval = Duration.seconds(10)
    private static let terminalInterval = Duration.milliseconds(200)

    /// - Parameters:
    ///   - total: the number of cases.
    ///   - work: the sum of their work, in the unit of `finishCase(work:)`; nil means 1 per case.
    public convenience init(total: Int, work: Double? = nil) {
        let clock = ContinuousClock()
        let origin = clock.now
        self.init(
            total: total, work: work, isTerminal: Self.hasTerminal, width: Self.terminalWidth,
            write: { FileHandle.standardError.write(Data($0.utf8)) },
            now: { clock.now - origin })
    }

    /// The line of a run whose rows show enough progress in a log: nil without a terminal.
    public static func onTerminal(total: Int, work: Double? = nil) -> ProgressLine? {
        hasTerminal ? ProgressLine(total: total, work: work) : nil
    }

    private static var hasTerminal: Bool { isatty(FileHandle.standardError.fileDescriptor) == 1 }

    /// The columns of the terminal but the last, in which some terminals begin a new line; 79 where it does not say.
    private static var terminalWidth: Int {
        var size = winsize()
        let isKnown = ioctl(FileHandle.standardError.fileDescriptor, UInt(TIOCGWINSZ), &size) == 0
        return isKnown && size.ws_col > 1 ? Int(size.ws_col) - 1 : 79
    }

    /// Parameters that tests replace: the kind of output, the output, and the clock.
    init(
        total: Int, work: Double? = nil, isTerminal: Bool, width: Int = 79, write: @escaping (String) -> Void,
        now: @escaping () -> Duration
    ) {
        self.total = total
        self.work = work ?? Double(total)
        self.isTerminal = isTerminal
        self.width = width
        self.write = write
        self.now = now
        start = now()
    }

    /// Call this when the case with this name starts.
    public func begin(_ caseName: String) {
        current = caseName
        show(atOnce: true)
    }

    /// Call this between rounds, as often as is convenient.
    public func tick() {
        show(atOnce: false)
    }

    /// Call this when a part of the current case is complete: the bar and the time that is left then move within cases.
    ///
    /// - Parameter work: the part of the work. `finishCase` then takes what remains of the case.
    public func advance(work: Double) {
        workDone += work
        show(atOnce: false)
    }

    /// Call this when the current case is complete.
    ///
    /// - Parameters:
    ///   - work: the part of the work that the case was.
    ///   - isSkipped: whether there was nothing to do, so that the time does not predict the rest.
    public func finishCase(work: Double = 1, isSkipped: Bool = false) {
        done += 1
        workDone += work
        if isSkipped { workSkipped += work }
        show(atOnce: false)
    }

    /// Clears the line on the terminal. Call it before printing a row; the next call of another method shows the line again.
    public func clear() {
        guard isVisible else { return }
        write("\r\u{1B}[K")
        isVisible = false
        lastShown = nil
    }

    // MARK: Output

    private func show(atOnce: Bool) {
        let time = now()
        if isTerminal {
            // On a terminal a line can be replaced, so it is shown at once: the first call of the kernel may take a minute.
            if !atOnce, let lastShown, time - lastShown < Self.terminalInterval { return }
            write("\r\u{1B}[K" + String(line(at: time).prefix(width)))
            isVisible = true
        } else {
            if time - (lastShown ?? start) < (lastShown == nil ? Self.patience : Self.plainInterval) { return }
            write(line(at: time) + "\n")
        }
        lastShown = time
    }

    private func line(at time: Duration) -> String {
        let elapsed = (time - start) / .seconds(1)
        var line = "[\(done)/\(total)] \(Format.duration(elapsed))"
        if isTerminal { line = "\(bar) \(line)" }
        if workDone > workSkipped, done < total {
            line += ", about \(Format.duration(elapsed / (workDone - workSkipped) * (work - workDone))) left"
        }
        return current.isEmpty ? line : line + ": \(current)"
    }

    /// A bar of twelve cells, each in eighths.
    private var bar: String {
        let eighths = Int(max(0, min(1, workDone / max(work, .leastNormalMagnitude))) * 96)
        let cells =
            String(repeating: "█", count: eighths / 8)
            + (eighths % 8 == 0 ? "" : [" ", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8])
        return "▕" + cells + String(repeating: " ", count: 12 - cells.count) + "▏"
    }
}
