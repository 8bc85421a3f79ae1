import Foundation

/// The built command, run as a user runs it.
enum RanksProgram {
    struct Result {
        var status: Int32
        var output: String
        var seconds: Double

        /// What the ranks say: lines that begin with `rank 0:` and so on.
        func line(of rank: Int) -> String? {
            output.split(separator: "\n").lazy.map(String.init).first { $0.hasPrefix("rank \(rank): ") }
        }
    }

    private static let package = URL(fileURLWithPath: #filePath).appendingPathComponent("../../../..").standardizedFileURL

    /// Beside the tests; nil where they are built in another way.
    static let path: String? = {
        let folder = URL(fileURLWithPath: CommandLine.arguments[0]).deletingLastPathComponent()
        let path = folder.appendingPathComponent("sparse-ranks").path
        return FileManager.default.isExecutableFile(atPath: path) ? path : nil
    }()

    /// Whether the command was built for MPI.
    static var hasMPI: Bool {
        #if MPI
            true
        #else
            false
        #endif
    }

    /// Whether ranks can be processes here.
    static let hasLauncher: Bool = {
        guard hasMPI, path != nil else { return false }
        return (ProcessInfo.processInfo.environment["PATH"] ?? "").split(separator: ":").contains {
            FileManager.default.isExecutableFile(atPath: "\($0)/mpirun")
        }
    }()

    /// Whether the launcher is Open MPI's. That of MPICH 4.0 kills the ranks that are left when one dies.
    static let isOpenMPI: Bool = {
        guard hasLauncher else { return false }
        let launcher = ProcessInfo.processInfo.environment["MPIRUN"] ?? "mpirun"
        return run(["/usr/bin/env", launcher, "--version"]).output.contains("Open MPI")
    }()

    static func run(_ arguments: [String], environment: [String: String] = [:]) -> Result {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: arguments[0])
        process.arguments = Array(arguments.dropFirst())
        process.environment = ProcessInfo.processInfo.environment.merging(environment) { $1 }
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

    /// The command on ranks that are threads.
    static func threads(_ arguments: String..., environment: [String: String] = [:]) -> Result {
        run([path!] + arguments, environment: environment)
    }

    /// The command on ranks that are processes, which is stopped after 30 seconds.
    static func processes(_ ranks: Int, _ arguments: String..., environment: [String: String] = [:]) -> Result {
        run(
            [package.appendingPathComponent("Scripts/mpirun-ranks").path, "\(ranks)", path!] + arguments,
            environment: ["MPIRUN_SECONDS": "30"].merging(environment) { $1 })
    }
}
