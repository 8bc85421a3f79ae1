import ArgumentParser
import BenchmarkReport
import Foundation
import SparseKernels

struct RunCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "run", abstract: "Measures roofs, products, attention and decoding; prints one verified row per case.")

    @OptionGroup var machine: MachineOptions

    @Option(help: "Run only cases whose operation or name contains this text.")
    var filter: String?

    @Flag(help: "Fewer and shorter cases, about a minute in all.")
    var quick = false

    @Flag(help: "Also prefill of structured synthetic operands of 65536 and 131072 tokens, which takes many minutes.")
    var long = false

    @Option(help: "Heads of the synthetic cases of dense and block-sparse attention. Default: 16384 / N, at least 1.")
    var heads: Int?

    @Option(help: "Tokens in the cache of the decoding cases, comma-separated. Default: 8192,32768,131072; with --quick 32768.")
    var decodeContext: String?

    @Option(help: "Write machine, roofs and rows to this file.")
    var json: String?

    @Option(help: "Write a chart of the percent of the roof to this file.")
    var svg: String?

    @Option(help: "Write a chart of the speed-up of block-sparse attention over its density to this file.")
    var svgDensity: String?

    @Option(help: "Write a chart of the speed-up of quantised layers over the number of tokens to this file.")
    var svgQuant: String?

    @Option(help: "Write a chart of the time of a decoded token over the context to this file.")
    var svgDecode: String?

    func run() throws {
        if let heads, heads < 1 { throw ValidationError("--heads takes 1 or more, got \(heads)") }
        let contexts = try decodeContexts()
        let sets = try machine.instructionSets()
        let pools = try machine.pools()
        let openBLAS = OpenBLASBaseline.prepare()
        var description = Machine.current(isa: sets.map(\.name).joined(separator: ","))
        description.baseline = openBLAS.description
        print("\(description.cpu), \(description.cores) cores; \(description.compiler); commit \(description.commit)")
        print("OpenBLAS: \(openBLAS.description)")
        if let remark = openBLAS.remark { print(remark) }

        var report = Report(machine: description, roofs: measureRoofs(sets[0]))
        let decode = DecodeCases(instructionSets: sets, pool: pools.last!, contexts: contexts)
        let upkeep = DecodeUpkeepCases(
            instructionSet: sets[0], pool: pools.last!, contexts: contexts, operands: decode.operands)
        var sections = [
            GEMMCases(instructionSets: sets, pools: pools, openBLAS: openBLAS).section(quick: quick),
            AttentionCases(instructionSets: sets, pools: pools, heads: heads).section(quick: quick),
            SparseAttentionCases(instructionSets: sets, pools: pools, heads: heads).section(quick: quick),
            ScoringCases(instructionSets: sets, pools: pools).section(quick: quick),
            PrefillCases(instructionSets: sets, pool: pools.last!).section(quick: quick, long: long),
            QuantizedGEMMCases(instructionSets: sets, pools: pools, openBLAS: openBLAS).section(quick: quick),
            QuantizationErrorCases(instructionSet: sets[0], pool: pools.last!, openBLAS: openBLAS).section(quick: quick),
            decode.section(quick: quick),
            upkeep.section(quick: quick),
            DecodeQualityCases(instructionSet: sets[0], pool: pools.last!).section(quick: quick),
        ]
        for index in sections.indices {
            sections[index].groups.removeAll { !$0.matches(filter) }
        }
        let total = sections.map(\.groups.count).reduce(0, +)
        if total == 0 { throw ValidationError("no case matches --filter \(filter ?? "")") }

        let runner = GroupRunner(
            sampler: Sampler(
                warmUpRounds: 1, minimumRounds: quick ? 3 : 5, budget: quick ? .milliseconds(600) : .seconds(2)),
            progress: ProgressLine(total: total))
        for section in sections where !section.groups.isEmpty {
            let table = TextTable(
                title: section.kind.title + section.remark, caseNames: section.groups.flatMap(\.rowNames),
                isas: sets.map(\.name) + ([.matrixProduct, .quantizedProduct].contains(section.kind) ? ["openblas"] : []),
                baselines: section.baselines,
                columns: section.kind.columns)
            table.printHeader()
            for group in section.groups {
                for row in try runner.run(group) {
                    table.printRow(row)
                    report.rows.append(row)
                }
            }
        }
        if let json { try report.write(to: json) }
        if let svg { try report.writeChart(to: svg) }
        if let svgDensity { try report.writeDensityChart(to: svgDensity) }
        if let svgQuant { try report.writeQuantizedChart(to: svgQuant) }
        if let svgDecode { try report.writeDecodeChart(to: svgDecode) }
        let failures = report.rows.filter { $0.status == .fail }.count
        if failures > 0 {
            print("\n\(failures) rows FAILED verification")
            throw ExitCode.failure
        }
    }

    /// The contexts of the decoding cases; nil means the usual ones.
    private func decodeContexts() throws -> [Int]? {
        try decodeContext?.split(separator: ",").map { text in
            guard let tokens = Int(text), (1024...1 << 24).contains(tokens) else {
                throw ValidationError("--decode-context takes 1024 tokens or more, got \"\(text)\"")
            }
            return tokens
        }
    }

    /// Measures the roofs for the report, on one thread and on all. Rows have their own roofs, from the same rounds.
    private func measureRoofs(_ set: InstructionSet) -> Roofs {
        let all = WorkerPool(threads: ProcessInfo.processInfo.activeProcessorCount)
        var roofs: Roofs = [:]
        print("\nRoofs, \(set)               1 thread   \(all.threads) threads")
        let fma = [WorkerPool.serial, all].map { MachineRoofs.multiplyAdd(instructionSet: set, on: $0) }
        let read = [WorkerPool.serial, all].map { MachineRoofs.read(instructionSet: set, on: $0) }
        (roofs[.fmaOneCore], roofs[.fmaAllCores]) = (fma[0], fma[1])
        (roofs[.readOneCore], roofs[.readAllCores]) = (read[0], read[1])
        let codes = [WorkerPool.serial, all].map { MachineRoofs.integerMultiplyAdd(instructionSet: set, on: $0) }
        // A multiply-add is two operations, as everywhere in these tables.
        (roofs[.int8DotOneCore], roofs[.int8DotAllCores]) = (2 * codes[0], 2 * codes[1])
        print(String(format: "multiply-add, GFLOP/s   %10.1f %11.1f", fma[0], fma[1]))
        print(String(format: "of codes, GOP/s         %10.1f %11.1f", 2 * codes[0], 2 * codes[1]))
        print(String(format: "memory read, GB/s       %10.1f %11.1f", read[0], read[1]))
        return roofs
    }
}
