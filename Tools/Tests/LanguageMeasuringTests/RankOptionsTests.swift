import ArgumentParser
import Communication
import LanguageMeasuring
import SparseKernels
import SparseKernelsModels
import Synchronization
import Testing

@testable import SparseLMTool

@Suite("Ranks of sparse-lm")
struct RankOptionsTests {
    private func options(_ arguments: String...) throws -> RankOptions { try RankOptions.parse(arguments) }

    @Test("ranks of this process share its threads, and one of them speaks")
    func threads() throws {
        for (count, threads) in [(1, 6), (2, 3), (4, 1)] {
            let seen = Mutex([String]())
            try options("--ranks", "\(count)").withRanks(environment: [:]) { ranks in
                #expect(ranks.count == count && ranks.speaks)
                try ranks.run(on: WorkerPool(threads: 6)) { rank in
                    #expect(rank.pool.threads == threads && rank.communicator?.count ?? 1 == count)
                    if rank.speaks { seen.withLock { $0.append("speaks") } }
                    let all = try rank.communicator?.gather([1]).count ?? 1
                    seen.withLock { $0.append("\(all)") }
                }
            }
            #expect(seen.withLock { $0.sorted() } == Array(repeating: "\(count)", count: count) + ["speaks"])
        }
        try options().withRanks(environment: [:]) { #expect($0.count == 1) }
    }

    @Test("an error of one rank ends all, and is the one that is thrown")
    func errors() throws {
        struct Other: Error, Equatable {}
        func run(_ body: @escaping (Rank) throws -> Void) throws {
            try options("--ranks", "3").withRanks(environment: [:]) { try $0.run(on: .serial, body) }
        }
        let error = #expect(throws: SparseKernelsError.self) {
            try run { rank in
                if rank.communicator?.rank == 1 {
                    throw SparseKernelsError(.notFound, "model", expected: "a file", actual: "none")
                }
                try rank.communicator?.barrier()
            }
        }
        #expect(error?.code == .notFound && error?.argument == "model")
        #expect(throws: Other.self) {
            try run { rank in
                if !rank.speaks { throw Other() }
                try rank.communicator?.barrier()
            }
        }
    }

    @Test("a program that mpirun has started says what it lacks")
    func launchers() throws {
        let launched = ["OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"]
        #expect(RankOptions.processesOnThisHost(launched) == 2 && RankOptions.processesOnThisHost([:]) == 1)
        let both = #expect(throws: ValidationError.self) {
            try options("--ranks", "2").withRanks(environment: launched) { _ in }
        }
        #expect(both?.message.contains("--ranks 2 is for one process, and mpirun has started 4") == true)
        #if !MPI
            let without = #expect(throws: ValidationError.self) {
                try options().withRanks(environment: ["PMI_RANK": "0", "PMI_SIZE": "2"]) { _ in }
            }
            #expect(without?.message.contains("built without MPI") == true)
        #endif
        let table = #expect(throws: ValidationError.self) {
            try RankOptions.requireOneProcess("table", environment: launched)
        }
        #expect(table?.message == "table runs in one process, and mpirun has started 4")
        try RankOptions.requireOneProcess("table", environment: [:])
        // One process of mpirun is one rank.
        try options("--ranks", "2").withRanks(environment: ["PMI_RANK": "0", "PMI_SIZE": "1"]) { #expect($0.count == 2) }
    }

    @Test(
        "numbers out of range are refused",
        arguments: [["--ranks", "0"], ["--rank-time-limit", "0"], ["--rank-time-limit", "inf"]])
    func ranges(arguments: [String]) {
        #expect(throws: (any Error).self) { try RankOptions.parse(arguments) }
    }

    @Test("a bench runs on ranks and says so")
    func bench() throws {
        let tiny = try TinyBytes()
        let model = try LanguageModel(folder: tiny.folder)
        var bench = LanguageBench()
        (bench.prompt, bench.steps, bench.depths, bench.repetitions) = (40, 2, [0, 70], 1)
        let rows = Mutex([LanguageBench.Row]())
        try options("--ranks", "2").withRanks(environment: [:]) { ranks in
            try ranks.run(on: .serial) { rank in
                try bench.run(
                    model, SessionSpec(method: MethodSpec("dense+quest:32")), text: Array(0..<200),
                    communicator: rank.communicator, pool: rank.pool
                ) { row throws(SparseKernelsError) in
                    if rank.speaks { rows.withLock { $0.append(row) } }
                }
            }
        }
        let made = rows.withLock { $0 }
        #expect(made.map(\.test) == ["pp40", "tg2", "pp40 @ d70", "tg2 @ d70"])
        #expect(made.allSatisfy { $0.ranks == 2 && $0.threads == 1 })
        let table = LanguageBench.Row.table(methodWidth: 6)
        #expect(made[0].line(in: table).contains("2 × 1"))
    }
}
