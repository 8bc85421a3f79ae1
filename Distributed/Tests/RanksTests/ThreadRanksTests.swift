import Testing

/// The command without a launcher: ranks are threads.
@Suite("Ranks as threads", .enabled(if: RanksProgram.path != nil, "the command is not beside the tests"))
struct ThreadRanksTests {
    @Test("messages and what is computed from them", arguments: [1, 2, 3, 4])
    func check(_ ranks: Int) {
        let result = RanksProgram.threads("check", "--local", "\(ranks)")
        #expect(result.status == 0 && result.output.contains("checks passed"), "\(result.output)")
    }

    @Test(
        "a fault is an error on every rank",
        arguments: [
            ("shape", "heads 4/2"), ("version", "on rank 1: 0.0.0"), ("large", "at most 1000 bytes from rank 1"),
            ("free", "rank 1"), ("silent", "rank 1"), ("error", "tokens.bin must be a file"),
        ])
    func fault(_ kind: String, _ reason: String) {
        let result = RanksProgram.threads("fault", "--kind", kind, "--local", "3", "--time-limit", "0.5")
        for rank in 0..<3 {
            let line = result.line(of: rank)
            #expect(line?.contains(reason) == true, "rank \(rank) says \(line ?? "nothing"): \(result.output)")
        }
        #expect(result.seconds < 10)
    }

    @Test("threads that are ranks in a process that is one are refused")
    func launchedThreads() {
        let result = RanksProgram.threads(
            "check", "--local", "2", environment: ["OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"])
        #expect(result.status != 0 && result.output.contains("in rank 1 of 2"), "\(result.output)")
    }

    @Test(
        "a program without MPI that a launcher has started says so",
        .enabled(if: !RanksProgram.hasMPI, "built with the trait MPI"))
    func launchedWithoutMPI() {
        let result = RanksProgram.threads(
            "check", environment: ["OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"])
        #expect(result.status != 0 && result.output.contains("--traits MPI"), "\(result.output)")
    }
}
