import Foundation
import Testing

@testable import SparseLMTool

/// The built command under `mpirun`, in bounded time.
@Suite(
    "sparse-lm over MPI", .serialized,
    .enabled(if: LaunchedCommand.isAvailable, "built without the trait MPI, or there is no mpirun"))
struct ProcessRanksTests {
    @Test("text of any number of processes is that of one, and is printed once")
    func text() throws {
        let tiny = try TinyBytes()
        let command = [
            LaunchedCommand.path, "generate", "func sum(", "--model", tiny.folder, "-n", "12", "--threads", "1", "--json",
        ]
        /// What is printed of the tokens; nil unless it is printed once.
        func tokens(_ result: LaunchedCommand.Result) -> String? {
            let parts = result.output.components(separatedBy: "\"tokens\" : ")
            return result.status == 0 && parts.count == 2 ? String(parts[1].prefix { $0 != "]" }) : nil
        }
        let made = try #require(tokens(LaunchedCommand.run(command)))
        for ranks in [2, 3] {
            let result = LaunchedCommand.processes(ranks, command)
            #expect(tokens(result) == made, "\(result.output)")
        }
    }

    @Test("a rank that has another model, or is killed, ends all with an error that names it")
    func faults() throws {
        let tiny = try TinyBytes()
        func result(_ body: String) -> LaunchedCommand.Result {
            let script = "rank=${OMPI_COMM_WORLD_RANK:-$PMI_RANK}; " + body
            return LaunchedCommand.processes(
                2, ["/bin/sh", "-c", script, LaunchedCommand.path, tiny.folder])
        }
        let run = "exec \"$0\" generate x --rank-time-limit 10 --threads 1 --model"
        let other = result("[ $rank = 1 ] && set -- /nowhere; \(run) \"$1\" -n 4")
        #expect(other.output.contains("rank 1 of world failed: input/output failure"), "\(other.output)")
        // The shell becomes the program, and the one in the background kills it.
        let killed = result("[ $rank = 1 ] && (sleep 1; kill -9 $$) & \(run) \"$1\" -n 1000000")
        #expect(killed.output.contains("rank 1 of world, process") && killed.output.contains("has died"), "\(killed.output)")
        #expect(killed.seconds < 15)
    }
}

/// The built command, run as a user runs it.
private enum LaunchedCommand {
    struct Result {
        let status: Int32
        let output: String
        let seconds: Double
    }

    /// Beside the tests.
    static let path = URL(fileURLWithPath: CommandLine.arguments[0]).deletingLastPathComponent()
        .appendingPathComponent("sparse-lm").path

    static let isAvailable: Bool = {
        #if MPI
            let folders = (ProcessInfo.processInfo.environment["PATH"] ?? "").split(separator: ":")
            return FileManager.default.isExecutableFile(atPath: path)
                && folders.contains { FileManager.default.isExecutableFile(atPath: "\($0)/mpirun") }
        #else
            return false
        #endif
    }()

    static func run(_ arguments: [String]) -> Result {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: arguments[0])
        process.arguments = Array(arguments.dropFirst())
        process.environment = ProcessInfo.processInfo.environment.merging(["MPIRUN_SECONDS": "40"]) { $1 }
        let pipe = Pipe()
        (process.standardOutput, process.standardError) = (pipe, pipe)
        process.standardInput = FileHandle.nullDevice
        let start = Date()
        do { try process.run() } catch { return Result(status: -1, output: "\(error)", seconds: 0) }
        let data = pipe.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        return Result(
            status: process.terminationStatus, output: String(decoding: data, as: UTF8.self),
            seconds: Date().timeIntervalSince(start))
    }

    /// A command on ranks that are processes.
    static func processes(_ ranks: Int, _ command: [String]) -> Result {
        let script = URL(fileURLWithPath: #filePath).appendingPathComponent("../../../../Scripts/mpirun-ranks")
            .standardizedFileURL
        return run([script.path, "\(ranks)"] + command)
    }
}
