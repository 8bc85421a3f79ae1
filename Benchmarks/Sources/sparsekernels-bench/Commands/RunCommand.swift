import ArgumentParser
import BenchmarkReport
import Foundation
import SparseKernels
import Terminal

struct RunCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "run", abstract: "Measures roofs, products, attention and decoding; prints one verified row per case.")

    @OptionGroup var machine: MachineOptions

    @OptionGroup var options: ReportOptions

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

        let context = RunContext(
            instructionSets: sets, pools: pools, openBLAS: openBLAS, isQuick: quick, isLong: long, heads: heads,
            decodeContexts: contexts)
        var sections = caseFamilies.map { $0.init(run: context).section() }
        let filter = try options.filter(for: sections.flatMap(\.groups).flatMap(\.cases))
        for index in sections.indices {
            sections[index].groups.removeAll { group in !group.cases.contains { filter.matches(op: $0.op, name: $0.name) } }
        }

        var report = Report(machine: description, roofs: measureRoofs(sets[0]))
        let runner = GroupRunner(
            sampler: Sampler(
                warmUpRounds: 1, minimumRounds: quick ? 3 : 5, budget: quick ? .milliseconds(600) : .seconds(2)),
            progress: ProgressLine(total: sections.map(\.groups.count).reduce(0, +)))
        for section in sections where !section.groups.isEmpty {
            let table = ReportTable(
                title: section.kind.title + section.remark, caseNames: section.groups.flatMap(\.rowNames),
                isas: sets.map(\.name) + section.otherISAs, baselines: section.baselines, metrics: section.kind.metrics)
            table.printHeader()
            for group in section.groups {
                for row in try runner.run(group) {
                    table.printRow(row)
                    report.rows.append(row)
                }
            }
        }
        if let json { try report.write(to: json) }
        try options.writeCharts(of: report)
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
