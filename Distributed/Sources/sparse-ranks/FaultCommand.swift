import ArgumentParser
import Communication
import Foundation
import MPICommunication
import SequenceParallel
import SparseKernels

/// Something that goes wrong on one rank.
enum FaultKind: String, CaseIterable, ExpressibleByArgument {
    /// Its process is killed.
    case kill
    /// It wants another shape than the others.
    case shape
    /// It has another version of the package.
    case version
    /// It sends more than there is room for.
    case large
    /// It frees a communicator that the others use.
    case free
    /// It does not answer.
    case silent
    /// It throws an error of its own.
    case error
}

/// What ranks say when one of them goes wrong. Tests run this under mpirun.
struct FaultCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "fault",
        abstract: "Lets something go wrong on one rank, and prints what every rank makes of it.",
        discussion: """
            Every rank that lives prints a line with its error and the seconds that it took. A rank without an error is a failure of \
            the command.
            """)

    @Option(help: "\(FaultKind.allCases.map(\.rawValue).joined(separator: ", ")).")
    var kind: FaultKind

    @Option(help: "The rank on which it happens.")
    var rank = 1

    @Option(help: "Ranks that are threads of this process.")
    var local: Int?

    @Option(help: "Seconds that a rank waits for another one.")
    var timeLimit = 5.0

    func run() throws {
        if let local {
            try runLocally(local)
        } else {
            try runOverMPI()
        }
    }

    private func runLocally(_ count: Int) throws {
        guard kind != .kill else { throw ValidationError("a rank that is a thread cannot be killed") }
        let (kind, rank) = (kind, rank)
        _ = try? LocalCommunicator.run(ranks: count, timeLimit: timeLimit) { (ranks) throws(SparseKernelsError) in
            do throws(SparseKernelsError) {
                if kind == .version {
                    let version = ranks.rank == rank ? "0.0.0" : PackageVersion.text
                    try ranks.agree(on: version, "version of SparseKernels")
                }
                try Self.provoke(kind, on: rank, ranks)
                print("rank \(ranks.rank): no error")
            } catch {
                print("rank \(ranks.rank): \(error)")
                throw error
            }
        }
    }

    private func runOverMPI() throws {
        #if MPI
            let launch = MPILaunch.detect() ?? MPILaunch(rank: 0, count: 1)
            let start = WaitClock.now
            var world: MPICommunicator?
            do throws(SparseKernelsError) {
                let version = kind == .version && launch.rank == rank ? "0.0.0" : PackageVersion.text
                let ranks = try MPICommunicator.world(timeLimit: timeLimit, pieceBytes: 1 << 30, version: version)
                world = ranks
                try Self.provoke(kind, on: rank, ranks)
                try ranks.finalize()
                say(launch, "no error")
            } catch {
                say(launch, "\(error) (after \(String(format: "%.2f", WaitClock.now - start)) s)")
                world?.fail(error)
                try? world?.finalize()
                return
            }
            throw ExitCode(1)
        #else
            throw ValidationError("built without the trait MPI: give --local")
        #endif
    }

    /// One write per line, so that the lines of ranks do not mix.
    private func say(_ launch: MPILaunch, _ text: String) {
        try? FileHandle.standardOutput.write(contentsOf: Data("rank \(launch.rank): \(text)\n".utf8))
    }

    /// Lets it happen in the midst of messages.
    private static func provoke(
        _ kind: FaultKind, on bad: Int, _ ranks: any Communicator
    ) throws(SparseKernelsError) {
        let isBad = ranks.rank == bad
        let group = try ranks.split(color: 0, key: 0, name: "group")!
        for _ in 0..<10 { try exchange(on: group, bytes: 1000) }
        switch kind {
        case .kill:
            if isBad { Foundation.kill(getpid(), SIGKILL) }
        case .shape:
            _ = try SequenceParallelAttention(
                .contiguous(length: 100, ranks: ranks.count), queryHeads: isBad ? 4 : 8, kvHeads: 2, headDim: 16, on: ranks)
        case .version:
            break
        case .large:
            let message = try MessageBuffer(byteCount: 1 << 20)
            let transfers = [
                try ranks.receive(into: message, 0..<1000, from: (ranks.rank + 1) % ranks.count, tag: 0),
                try ranks.send(
                    message, 2000..<(isBad ? 1 << 20 : 3000), to: (ranks.rank + ranks.count - 1) % ranks.count, tag: 0),
            ]
            for transfer in transfers { try ranks.wait(for: transfer) }
        case .free:
            if isBad { group.free() }
        case .silent:
            if isBad { Thread.sleep(forTimeInterval: 2 * ranks.timeLimit + 1) }
        case .error:
            if isBad { throw SparseKernelsError(.notFound, "tokens.bin", expected: "a file", actual: "nothing") }
        }
        for _ in 0..<10 { try exchange(on: group, bytes: 1000) }
    }

    private static func exchange(on ranks: any Communicator, bytes: Int) throws(SparseKernelsError) {
        let counts = Array(repeating: bytes, count: ranks.count)
        let sent = try MessageBuffer(byteCount: bytes * ranks.count)
        let received = try MessageBuffer(byteCount: bytes * ranks.count)
        try ranks.allToAll(from: sent, counts: counts, into: received, counts: counts)
    }
}
