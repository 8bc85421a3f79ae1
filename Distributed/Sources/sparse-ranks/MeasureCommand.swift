import ArgumentParser
import Foundation
import MPICommunication
import SequenceParallel
import Terminal

struct MeasureCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "measure",
        abstract: "Measures messages, attention and memory of the ranks that it runs on, for `simulate`.",
        discussion: """
            The constants are those of the ranks that run: `--local 16` for threads of this machine, or `mpirun -n 16` for processes \
            of one or several. With --check it then runs attention on these ranks, and prints measured times over simulated ones.
            """)

    @Option(help: "Ranks that are threads of this process.")
    var local: Int?

    @Option(help: "Threads of each rank.")
    var threads = 1

    @Option(help: "Of the link between hosts where there is one host only: Gbit/s and microseconds.")
    var network = "25,30"

    @Option(help: "What the constants are called.")
    var name = "this machine"

    @Option(help: "Write the constants to this file.")
    var json: String?

    @Flag(help: "Measure less, in a fraction of a second.")
    var quick = false

    @Option(help: "Run attention of so many tokens in every arrangement, and compare with the simulation.")
    var check: Int?

    func validate() throws {
        _ = try link()
        if let local, !(1...256).contains(local) { throw ValidationError("--local takes 1 to 256 ranks, got \(local)") }
        if !(1...256).contains(threads) { throw ValidationError("--threads takes 1 to 256, got \(threads)") }
        if let check, !(64...1 << 20).contains(check) {
            throw ValidationError("--check takes 64 to 1048576 tokens, got \(check)")
        }
    }

    private func link() throws -> RankMachine.Link {
        let numbers = network.split(separator: ",").compactMap { Double($0) }
        guard numbers.count == 2, numbers[0] > 0, numbers[1] >= 0, numbers.allSatisfy(\.isFinite) else {
            throw ValidationError("--network takes GBIT,MICROSECONDS such as 25,30, got \"\(network)\"")
        }
        return .init(latency: numbers[1] * 1e-6, bytesPerSecond: numbers[0] / 8 * 1e9, occupiesCore: false)
    }

    func run() throws {
        let (link, name, threads, check) = (try link(), name, threads, check)
        let effort: RankMeasurement.Effort = quick ? .least : .usual
        let result = try RankLauncher.run(local: local) { (ranks) throws(SparseKernelsError) in
            let pool = WorkerPool(threads: threads)
            let measured = try RankMeasurement(
                on: ranks, host: ProcessInfo.processInfo.hostName, named: name, assuming: link, effort: effort, pool: pool)
            let checks = try check.map { tokens throws(SparseKernelsError) in
                try SimulationCheck.all(tokens: tokens, measured.machine, on: ranks, pool: pool)
            }
            return (measured, checks)
        }
        guard let (measured, checks) = result else { return }
        measured.lines.forEach { printNow($0) }
        checks.map { SimulationCheck.lines($0, tokens: check!) }?.forEach { printNow($0) }
        if let json {
            let encoder = JSONEncoder()
            encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
            try encoder.encode(measured.machine).write(to: URL(fileURLWithPath: json), options: .atomic)
        }
    }
}

extension RankMeasurement {
    /// For people: the constants, and the messages that links were fitted to.
    var lines: [String] {
        func line(_ name: String, _ value: Double, _ unit: String) -> String {
            name.padding(toLength: 44, withPad: " ", startingAt: 0) + Format.number(value) + " " + unit
        }
        var lines = [
            "\(machine.name): \(machine.ranksPerHost) ranks per host",
            line("attention, multiply-adds", machine.attentionRate / 1e9, "·10⁹/s"),
            line("a call of attention", machine.attentionCallSeconds * 1e6, "µs"),
            line("products, multiply-adds", machine.linearRate / 1e9, "·10⁹/s"),
            line("a 16-bit cache near the core, attended", machine.cacheRate / 1e9, "GB/s"),
            line("memory, one rank", machine.memoryRate / 1e9, "GB/s"),
            line("memory, all ranks of a host", machine.hostMemoryRate / 1e9, "GB/s"),
        ]
        for (name, link, times) in [
            ("within a host", machine.within, within), ("between hosts", machine.between, between),
        ] {
            let source = times == nil ? ", assumed" : ""
            lines.append(line("messages \(name)\(source)", link.latency * 1e6, "µs"))
            lines.append(line("", link.bytesPerSecond / 1e9, "GB/s"))
            guard let times else { continue }
            for (size, seconds) in zip(times.sizes, times.seconds) {
                let fitted = link.seconds(bytes: size)
                lines.append(
                    line("    \(size) bytes", seconds * 1e6, "µs, \(Format.number(seconds / fitted)) of the fitted time"))
            }
        }
        return lines
    }
}
