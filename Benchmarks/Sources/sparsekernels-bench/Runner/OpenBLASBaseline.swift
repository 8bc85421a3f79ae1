import ArgumentParser
import BenchmarkReport
import Foundation
import SparseKernels

/// OpenBLAS as the baseline of this run: which kernels it has, and whether rows are compared with it.
struct OpenBLASBaseline {
    /// Whether it is built in, and has rows of its own.
    var isAvailable: Bool
    /// Whether speed-ups over it mean something. Without, the column stays empty.
    var isFit: Bool
    /// For the head of the tables and the report.
    var description: String
    /// Why it is not fit.
    var remark: String?

    /// The name that the column has, where there is one.
    var name: String? { isFit ? "OpenBLAS" : nil }

    /// What the reports say after a title.
    var titleRemark: String { isAvailable ? (isFit ? "" : " (no fit OpenBLAS kernels)") : " (built without OpenBLAS)" }

    static let variable = "OPENBLAS_CORETYPE"
    /// Set in a process that the benchmark started in its own place. Such a process starts no other.
    private static let restartVariable = "SPARSEKERNELS_BENCH_BASELINE"
    /// For tests by hand: names that OpenBLAS is taken to report, before and after the restart, with a comma between them.
    private static let pretenceVariable = "SPARSEKERNELS_BENCH_PRETEND_CORE"

    /// Looks at the kernels that OpenBLAS chose, and starts the benchmark again, once, when they are below the machine's level and the
    /// library has others. Call it before anything is measured.
    static func prepare() -> OpenBLASBaseline {
        guard let reported = OpenBLAS.coreName else {
            return OpenBLASBaseline(isAvailable: false, isFit: false, description: OpenBLAS.configuration)
        }
        let environment = ProcessInfo.processInfo.environment
        let chosen = environment[restartVariable]
        let core = pretence(environment, afterRestart: chosen != nil) ?? reported
        let machine = BaselineKernels.Level(rawValue: InstructionSet.available[0].name) ?? .portable
        let userChoice = chosen == nil ? environment[variable] : nil
        var decision = BaselineKernels.decide(
            core: core, machine: machine, userChoice: userChoice, hasRestarted: chosen != nil)
        if decision == .restart {
            let (features, isAMD) = Machine.baselineFeatures()
            let candidates = BaselineKernels.candidates(for: machine, features: features, isAMD: isAMD)
            if let best = candidates.first(where: hasCore) {
                print(
                    "OpenBLAS chose its \(core) kernels on a machine with \(machine.rawValue); starting again with \(variable)=\(best)"
                )
                restart(core: best)
            }
            // Only a failure comes back.
            decision = .unfit(
                reason: "OpenBLAS runs \(core), which is below \(machine.rawValue), and has none of "
                    + candidates.joined(separator: ", "))
        }
        var origin = "as it chose"
        if let chosen { origin = "\(variable)=\(chosen) set by the benchmark" }
        if let userChoice, !userChoice.isEmpty { origin = "\(variable)=\(userChoice) set by the user" }
        var baseline = OpenBLASBaseline(
            isAvailable: true, isFit: true, description: "\(OpenBLAS.configuration), \(origin)")
        if case .unfit(let reason) = decision {
            (baseline.isFit, baseline.remark) = (false, "No speed-ups over OpenBLAS: \(reason).")
        } else if let level = BaselineKernels.level(ofCore: core), level < machine {
            // The user's choice: it is measured, and nobody shall take it for what OpenBLAS can do here.
            baseline.remark = "Speed-ups are over \(core) kernels, which are below \(machine.rawValue)."
        }
        return baseline
    }

    /// Whether OpenBLAS takes a name: another process is told to, and asked what it has.
    private static func hasCore(_ name: String) -> Bool {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
        process.arguments = [CoreCommand.configuration.commandName!]
        process.environment = ProcessInfo.processInfo.environment.merging([variable: name]) { $1 }
        let pipe = Pipe()
        process.standardOutput = pipe
        process.standardError = FileHandle.nullDevice
        guard (try? process.run()) != nil else { return false }
        let data = (try? pipe.fileHandleForReading.readToEnd()) ?? Data()
        process.waitUntilExit()
        let answer = String(decoding: data, as: UTF8.self).trimmingCharacters(in: .whitespacesAndNewlines)
        return process.terminationStatus == 0 && answer.lowercased() == name.lowercased()
    }

    /// Replaces this process by one with the same arguments. Returns when that fails.
    private static func restart(core: String) {
        #if os(Linux)
            fflush(nil)  // What was printed would be lost with this process.
            setenv(variable, core, 1)
            setenv(restartVariable, core, 1)
            let arguments = CommandLine.arguments.map { strdup($0) } + [nil]
            execv("/proc/self/exe", arguments)
            for argument in arguments { free(argument) }
            unsetenv(variable)
            unsetenv(restartVariable)
        #endif
    }

    private static func pretence(_ environment: [String: String], afterRestart: Bool) -> String? {
        let names = environment[pretenceVariable]?.split(separator: ",") ?? []
        return names.dropFirst(afterRestart ? 1 : 0).first.map(String.init)
    }
}

/// Prints the kernels that OpenBLAS chose, for the process that wants to know.
struct CoreCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "openblas-core", abstract: "Prints the kernel set that OpenBLAS chose for this processor.",
        shouldDisplay: false)

    func run() throws {
        guard let core = OpenBLAS.coreName else { throw ValidationError("built without OpenBLAS") }
        print(core)
    }
}
