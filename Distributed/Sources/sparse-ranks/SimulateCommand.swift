import ArgumentParser
import Foundation
import SequenceParallel
import Terminal

struct SimulateCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "simulate",
        abstract: "Prints time and memory of a model's prefill and decoding on many ranks, from measured constants.",
        discussion: """
            Ring, zigzag ring and Ulysses, and the fastest 2D arrangement of the ranks, are simulated step by step. The constants \
            are those of a 16-core machine with an assumed Ethernet of 25 Gbit/s, or those that `measure` has written.
            """)

    @Option(help: "The model: \(SimulatedModel.all.map(\.name).joined(separator: ", ")), or a JSON file with its sizes.")
    var model = SimulatedModel.eightBillion.name

    @Option(help: "Constants of a machine: a JSON file of `measure`.")
    var constants: String?

    @Option(help: "Numbers of ranks, comma-separated. Default: 2, 4, … 1024.")
    var ranks: String?

    @Option(help: "Contexts in tokens, comma-separated, with K or M for 2^10 or 2^20.")
    var contexts = "128K,1M,4M,16M"

    @Option(help: "Ranks of a host, in place of those of the constants.")
    var ranksPerHost: Int?

    @Option(help: "Threads of a rank: as many times fewer ranks are on a host.")
    var threadsPerRank = 1

    @Flag(help: "Only prefill, or only decoding.")
    var part: SimulationPart?

    @Option(help: "Write all rows to this file.")
    var json: String?

    @Option(help: "Draw a chart of the longest context: KIND=FILE.svg, with speedup, efficiency or memory. May be repeated.")
    var chart: [String] = []

    func validate() throws {
        _ = try SimulationSweep.contexts(contexts)
        _ = try rankCounts()
        _ = try charts()
        if let ranksPerHost, ranksPerHost < 1 { throw ValidationError("--ranks-per-host takes 1 or more, got \(ranksPerHost)") }
        if threadsPerRank < 1 { throw ValidationError("--threads-per-rank takes 1 or more, got \(threadsPerRank)") }
    }

    func run() throws {
        var machine = try constants.map { try Self.decoded(RankMachine.self, $0) } ?? .sixteenCoreHosts
        if let ranksPerHost { machine.ranksPerHost = ranksPerHost }
        machine = machine.joining(threads: threadsPerRank)
        try machine.validate()
        let sweep = try SimulationSweep(
            model: simulatedModel(), machine: machine, contexts: SimulationSweep.contexts(contexts), ranks: rankCounts())
        if part != .decode { sweep.prefillTables.forEach { $0.forEach { printNow($0) } } }
        if part != .prefill { sweep.decodeTables.forEach { $0.forEach { printNow($0) } } }
        if let json {
            let encoder = JSONEncoder()
            encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
            try encoder.encode(sweep.report).write(to: URL(fileURLWithPath: json), options: .atomic)
        }
        for (kind, path) in try charts() {
            try Data(sweep.chart(kind).svg().utf8).write(to: URL(fileURLWithPath: path), options: .atomic)
            printNow("wrote \(path)")
        }
    }

    private func simulatedModel() throws -> SimulatedModel {
        try SimulatedModel.all.first { $0.name == model } ?? Self.decoded(SimulatedModel.self, model)
    }

    private func rankCounts() throws -> [Int] {
        guard let ranks else { return (1...10).map { 1 << $0 } }
        return try ranks.split(separator: ",").map { text in
            guard let count = Int(text), (1...TokenShards.largestRankCount).contains(count) else {
                throw ValidationError("--ranks takes numbers of 1 to \(TokenShards.largestRankCount), got \"\(text)\"")
            }
            return count
        }
    }

    private func charts() throws -> [(SimulationSweep.ChartKind, String)] {
        try chart.map { text in
            let parts = text.split(separator: "=", maxSplits: 1).map(String.init)
            guard parts.count == 2, let kind = SimulationSweep.ChartKind(rawValue: parts[0]) else {
                let kinds = SimulationSweep.ChartKind.allCases.map(\.rawValue).joined(separator: ", ")
                throw ValidationError("--chart takes KIND=FILE with one of \(kinds), got \"\(text)\"")
            }
            return (kind, parts[1])
        }
    }

    private static func decoded<Value: Decodable>(_ type: Value.Type, _ path: String) throws -> Value {
        let data: Data
        do { data = try Data(contentsOf: URL(fileURLWithPath: path)) } catch {
            throw ValidationError("\(path) cannot be read")
        }
        do { return try JSONDecoder().decode(type, from: data) } catch {
            throw ValidationError("\(path) is no JSON of a \(type): \(error)")
        }
    }
}

/// What `simulate` prints.
enum SimulationPart: String, EnumerableFlag {
    case prefill, decode
}
