import ArgumentParser
import Foundation
import SequenceParallel
import Terminal

/// A model on many numbers of ranks, with several contexts.
struct SimulationSweep {
    let model: SimulatedModel
    let machine: RankMachine
    /// By context, then by ranks.
    let prefills: [(context: Int, rows: [PrefillRow])]
    let decodes: [(context: Int, rows: [DecodeSimulation])]

    /// The arrangements of some ranks. Nil where the heads do not allow one.
    struct PrefillRow {
        let ranks: Int
        let ring: PrefillSimulation
        let zigzag: PrefillSimulation
        let ulysses: PrefillSimulation?
        let fastest: PrefillSimulation
    }

    init(model: SimulatedModel, machine: RankMachine, contexts: [Int], ranks: [Int]) throws {
        (self.model, self.machine) = (model, machine)
        prefills = try contexts.map { context in
            (
                context,
                try ranks.map { count in
                    func simulate(_ method: SequenceParallelMethod) throws -> PrefillSimulation {
                        try PrefillSimulation(model, length: context, ranks: count, method, on: machine)
                    }
                    return PrefillRow(
                        ranks: count, ring: try simulate(.ring), zigzag: try simulate(.zigzag),
                        ulysses: model.costs.allows(ulysses: count) ? try simulate(.ulysses) : nil,
                        fastest: try .fastest(model, length: context, ranks: count, on: machine))
                }
            )
        }
        decodes = try contexts.map { context in
            (context, try ranks.map { try DecodeSimulation(model, length: context, ranks: $0, on: machine) })
        }
    }

    // MARK: - Text

    /// Tokens from "4096", "128K" or "1M".
    static func contexts(_ text: String) throws -> [Int] {
        try text.split(separator: ",").map { part in
            let shift = part.last == "K" ? 10 : part.last == "M" ? 20 : 0
            guard let number = Int(shift > 0 ? part.dropLast() : part), number >= 1,
                number <= PrefillSimulation.largestLength >> shift
            else { throw ValidationError("--contexts takes tokens such as 4096, 128K or 1M, got \"\(part)\"") }
            return number << shift
        }
    }

    /// "128K" or "1M", where that is exact.
    static func label(_ context: Int) -> String {
        if context % (1 << 20) == 0 { return "\(context >> 20)M" }
        return context % 1024 == 0 ? "\(context >> 10)K" : "\(context)"
    }

    private static func gibibytes(_ bytes: Int) -> String { Format.number(Double(bytes) / Double(1 << 30)) }

    /// For every context a table with a line for each number of ranks.
    var prefillTables: [[String]] {
        prefills.map { context, rows in
            let table = TextTable([
                .init("Ranks"), .init("Ring", "s", width: 7), .init("Effic.", "%", width: 5), .init("Zigzag", "s", width: 7),
                .init("Effic.", "%", width: 5), .init("Ulysses", "s", width: 7), .init("Effic.", "%", width: 5),
                .init("2D", "s", width: 7), .init("Effic.", "%", width: 5), .init("Speed", "×", width: 6),
                .init("Groups", "U × R", width: 8), .init("Hidden", "%", width: 5), .init("Sent", "MB", width: 6),
                .init("Ring", "GiB", width: 6), .init("2D", "GiB", width: 6),
            ])
            let one = rows.first.map { Format.duration($0.zigzag.secondsOfOneRank) } ?? ""
            return [
                "", "\(model.name), prefill of \(Self.label(context)) tokens; one rank: \(one); \(machine.name)",
            ] + table.header
                + rows.map { row in
                    let times = [row.ring, row.zigzag, row.ulysses, row.fastest].flatMap { one in
                        [Format.number(one?.seconds), Format.percent(one?.efficiency)]
                    }
                    let best = row.fastest
                    return table.line(
                        ["\(row.ranks)"] + times + [
                            Format.number(best.speedup), "\(best.ulysses) × \(best.ring)",
                            Format.percent(best.attention.hiddenShare),
                            Format.number(Double(best.attention.largestSentBytes) / 1e6),
                            Self.gibibytes(row.zigzag.memory.ofContext), Self.gibibytes(best.memory.ofContext),
                        ])
                }
        }
    }

    var decodeTables: [[String]] {
        decodes.map { context, rows in
            let table = TextTable([
                .init("Ranks"), .init("Attention", "ms/token", width: 8), .init("Reading", "ms", width: 7),
                .init("Gathering", "ms", width: 7), .init("Speed", "×", width: 6), .init("Effic.", "%", width: 5),
                .init("Weights", "ms", width: 7), .init("Token", "ms", width: 7), .init("Sent", "KB", width: 6),
                .init("Cache", "GiB", width: 6),
            ])
            let one = rows.first.map { Format.number($0.attentionSecondsOfOneRank * 1e3) } ?? ""
            return [
                "",
                "\(model.name), decoding with \(Self.label(context)) tokens; attention of one rank: \(one) ms/token; \(machine.name)",
            ] + table.header
                + rows.map { row in
                    let layers = Double(model.layers) * 1e3
                    return table.line([
                        "\(row.ranks)", Format.number(row.attentionSeconds * 1e3), Format.number(row.readingSeconds * layers),
                        Format.number(row.gatheringSeconds * layers), Format.number(row.attentionSpeedup),
                        Format.percent(row.efficiency), Format.number(row.linearSeconds * layers),
                        Format.number(row.seconds * 1e3), Format.number(Double(row.sentBytes) / 1e3),
                        Self.gibibytes(row.cacheBytes),
                    ])
                }
        }
    }

    // MARK: - Charts

    enum ChartKind: String, CaseIterable {
        case speedup, efficiency, memory
    }

    /// Curves over the ranks, of the longest context.
    func chart(_ kind: ChartKind) -> LineChart {
        let (context, rows) = prefills.max { $0.context < $1.context } ?? (0, [])
        func series(_ name: String, _ simulation: (PrefillRow) -> PrefillSimulation?) -> LineChart.Series {
            LineChart.Series(
                name,
                rows.compactMap { row in
                    simulation(row).map { one in
                        let value =
                            switch kind {
                            case .speedup: one.speedup
                            case .efficiency: one.efficiency
                            case .memory: Double(one.memory.ofContext) / Double(1 << 30)
                            }
                        return (Double(row.ranks), value)
                    }
                })
        }
        let yAxis: LineChart.Axis =
            switch kind {
            case .speedup: .init("speed-up over one rank", scale: .logarithmic, style: .times)
            case .efficiency: .init("efficiency", style: .percent)
            case .memory: .init("GiB of a rank, beside the weights", scale: .logarithmic)
            }
        return LineChart(
            title: "Prefill of \(Self.label(context)) tokens, \(model.name)", subtitle: "simulated: \(machine.name)",
            xAxis: .init("ranks", scale: .logarithmic), yAxis: yAxis,
            series: [
                series("ring") { $0.ring }, series("zigzag ring") { $0.zigzag }, series("Ulysses") { $0.ulysses },
                series("2D, fastest groups") { $0.fastest },
            ].filter { !$0.points.isEmpty }, ideal: kind == .speedup ? .init("ranks") { $0 } : nil)
    }

    // MARK: - JSON

    struct Report: Codable {
        struct Prefill: Codable {
            let context, ranks, ulysses, ring: Int
            let method: String
            let seconds, speedup, efficiency, hiddenShare, imbalance: Double
            let sentBytesPerLayer, contextBytes, weightBytes: Int
        }

        struct Decode: Codable {
            let context, ranks: Int
            let seconds, attentionSeconds, speedup, efficiency: Double
            let sentBytes, cacheBytes: Int
        }

        let model: SimulatedModel
        let machine: RankMachine
        let prefill: [Prefill]
        let decode: [Decode]
    }

    var report: Report {
        Report(
            model: model, machine: machine,
            prefill: prefills.flatMap { context, rows in
                rows.flatMap { row in
                    [("ring", row.ring), ("zigzag", row.zigzag), ("ulysses", row.ulysses), ("2d", row.fastest)].compactMap {
                        method, one in
                        one.map { one in
                            Report.Prefill(
                                context: context, ranks: row.ranks, ulysses: one.ulysses, ring: one.ring, method: method,
                                seconds: one.seconds, speedup: one.speedup, efficiency: one.efficiency,
                                hiddenShare: one.attention.hiddenShare, imbalance: one.attention.imbalance,
                                sentBytesPerLayer: one.attention.largestSentBytes, contextBytes: one.memory.ofContext,
                                weightBytes: one.memory.weights)
                        }
                    }
                }
            },
            decode: decodes.flatMap { context, rows in
                rows.map { row in
                    Report.Decode(
                        context: context, ranks: row.ranks, seconds: row.seconds, attentionSeconds: row.attentionSeconds,
                        speedup: row.attentionSpeedup, efficiency: row.efficiency, sentBytes: row.sentBytes,
                        cacheBytes: row.cacheBytes)
                }
            })
    }
}
