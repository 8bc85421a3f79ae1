import Foundation
import SequenceParallel
import Testing

@testable import SparseRanksTool

/// The table of Docs/Operators/RankSimulation.md is what the code says today.
@Suite("RankSimulation.md")
struct RankSimulationPageTests {
    @Test("the table is that of the simulation")
    func table() throws {
        let page = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
            .appendingPathComponent("../../../Docs/Operators/RankSimulation.md")
        let lines = try String(contentsOf: page, encoding: .utf8).components(separatedBy: "\n")
        // `sparse-ranks simulate --contexts 1M --ranks 2,4,16,64,256 --prefill`
        let sweep = try SimulationSweep(
            model: .eightBillion, machine: .sixteenCoreHosts, contexts: [1 << 20], ranks: [2, 4, 16, 64, 256])
        let table = sweep.prefillTables[0].dropFirst()
        let start = try #require(lines.firstIndex(of: "<!-- simulation -->"))
        let shown = lines[(start + 2)...].prefix { $0 != "```" }
        #expect(Array(shown) == Array(table), "run sparse-ranks simulate, and put its table into the page")
    }
}
