import ArgumentParser
import Communication
import Foundation
import MPICommunication
import SparseKernels

/// Whether messages arrive, and whether what is computed from them is right.
struct CheckCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "check",
        abstract: "Checks the messages between ranks, and attention that is computed over them.",
        discussion: """
            The ranks are the processes that mpirun has started, or threads of this process: `--local 4`. A check that fails on any \
            rank is a failure of the command.
            """)

    @Option(help: "Ranks that are threads of this process.")
    var local: Int?

    @Option(help: "Seconds that a rank waits for another one.")
    var timeLimit = 60.0

    @Option(help: "Bytes above which messages of MPI travel in pieces; a small number tests what happens above 2³¹.")
    var pieceBytes = 1 << 30

    func validate() throws {
        if let local, !(1...256).contains(local) { throw ValidationError("--local takes 1 to 256 ranks, got \(local)") }
    }

    func run() throws {
        let failures: Int?
        if local == nil, (MPILaunch.detect()?.count ?? 1) > 1, RankLauncher.hasMPI {
            failures = try runOverMPI()
        } else {
            failures = try RankLauncher.run(local: local, timeLimit: timeLimit) { (ranks) throws(SparseKernelsError) in
                try RankChecks.run(on: ranks, transport: "threads of a process")
            }
        }
        if let failures, failures > 0 { throw ExitCode(1) }
    }

    private func runOverMPI() throws -> Int {
        #if MPI
            let ranks = try MPICommunicator.world(timeLimit: timeLimit, pieceBytes: pieceBytes, version: PackageVersion.text)
            let failures: Int
            do throws(SparseKernelsError) {
                failures = try RankChecks.run(on: ranks, transport: ranks.library)
            } catch {
                ranks.fail(error)
                try? ranks.finalize()
                throw error
            }
            try ranks.finalize()
            return failures
        #else
            fatalError("built without MPI")
        #endif
    }
}
