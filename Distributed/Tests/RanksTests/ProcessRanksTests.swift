import Testing

/// Ranks that are processes, over MPI on this machine: messages, and what is left of them when a rank goes wrong.
@Suite(
    "Ranks over MPI", .serialized,
    .enabled(if: RanksProgram.hasLauncher, "built without the trait MPI, or there is no mpirun"))
struct ProcessRanksTests {
    @Test("messages and what is computed from them", arguments: [2, 4])
    func check(_ ranks: Int) {
        let result = RanksProgram.processes(ranks, "check")
        #expect(result.status == 0, "\(result.output)")
        #expect(result.output.contains("\(ranks) ranks, ") && result.output.contains("checks passed"), "\(result.output)")
        #expect(!result.output.contains("WRONG"))
    }

    @Test("messages that travel in many pieces", arguments: [1000])
    func pieces(_ bytes: Int) {
        let result = RanksProgram.processes(3, "check", "--piece-bytes", "\(bytes)")
        #expect(result.status == 0 && result.output.contains("checks passed"), "\(result.output)")
    }

    @Test("over TCP", .enabled(if: RanksProgram.isOpenMPI, "only Open MPI has the option"))
    func loopback() {
        let result = RanksProgram.processes(2, "check", environment: ["MPIRUN_OPTIONS": "--mca btl self,tcp"])
        #expect(result.status == 0 && result.output.contains("checks passed"), "\(result.output)")
    }

    // MARK: - Faults

    /// The bad rank is 1.
    @Test(
        "a fault is an error on every rank, which names rank and operation",
        arguments: [
            ("shape", "the plan of sequence-parallel attention", "heads 4/2"),
            ("version", "version of SparseKernels", "on rank 1: 0.0.0"),
            ("large", "wait of world", "from rank 1, got more than 1000 bytes"),
            ("free", "of world.group", "rank 1"),
            ("silent", "allToAll of world.group", "in no call are ranks of world: 1"),
            ("error", "tokens.bin", "a file"),
        ])
    func fault(_ kind: String, _ operation: String, _ reason: String) {
        let result = RanksProgram.processes(3, "fault", "--kind", kind, "--time-limit", "1")
        for rank in 0..<3 {
            let line = result.line(of: rank)
            #expect(
                line?.contains(operation) == true && line?.contains(reason) == true,
                "rank \(rank) says \(line ?? "nothing"): \(result.output)")
        }
        #expect(result.seconds < 20)
    }

    @Test("when a rank is killed the others say which, and end", arguments: [(2, 1), (3, 0), (3, 1), (4, 3)])
    func kill(_ ranks: Int, _ victim: Int) {
        let result = RanksProgram.processes(ranks, "fault", "--kind", "kill", "--rank", "\(victim)", "--time-limit", "10")
        // Found out by looking, long before the time limit.
        #expect(result.seconds < 9)
        #expect(result.line(of: victim) == nil)
        guard RanksProgram.isOpenMPI else {
            #expect(result.status != 0)
            return
        }
        for rank in 0..<ranks where rank != victim {
            let line = result.line(of: rank)
            #expect(
                line?.contains("allToAll of world.group") == true && line?.contains("rank \(victim) of world, process") == true
                    && line?.contains("has died") == true,
                "rank \(rank) says \(line ?? "nothing"): \(result.output)")
        }
    }
}
