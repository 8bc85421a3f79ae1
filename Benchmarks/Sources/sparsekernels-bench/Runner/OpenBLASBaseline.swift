import ArgumentParser
import BenchmarkReport
import Foundation
import SparseKernels

/// OpenBLAS as the baseline of this run: its kernels, and whether rows are compared with it.
struct OpenBLASBaseline {
    /// Whether it is built in, and has its own rows.
    var isAvailable: Bool
    /// Whether speed-ups over it are meaningful. If not, the column stays empty.
    var isFit: Bool
    /// The description for the head of the tables and the report.
    var description: String
    /// The reason why it is not fit.
    var remark: String?

    /// The name of the column, if there is one.
    var name: String? { isFit ? "OpenBLAS" : nil }

    /// The text after titles in reports.
    var titleRemark: String { isAvailable ? (isFit ? "" : " (no fit OpenBLAS kernels)") : " (built without OpenBLAS)" }

    static let variable = "OPENBLAS_CORETYPE"
    /// Set in a process that the benchmark started to replace itself. Such a process starts no other.
    private static let restartVariable = "SPARSEKERNELS_BENCH_BASELINE"
    /// For manual tests: names that OpenBLAS pretends to report before and after the restart, separated by a comma.
    private static let pretenceVariable = "SPARSEKERNELS_BENCH_PRETEND_CORE"

    /// Checks the kernels that OpenBLAS chose, and restarts the benchmark once if they are below the machine's level and the
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
            // The call returns only on failure.
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
            // It is the user's choice, so it is measured, with a remark that OpenBLAS could be faster here.
            baseline.remark = "Speed-ups are over \(core) kernels, which are below \(machine.rawValue)."
        }
        return baseline
    }

    /// Whether OpenBLAS accepts a name. Another process is started with the name and reports its kernels.
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

    /// Replaces this process by one with the same arguments. Returns only on failure.
    private static func restart(core: String) {
        #if os(Linux)
            fflush(nil)  // Buffered output would be lost with this process.
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

/// Prints the kernels that OpenBLAS chose, for the process that tests a name.
struct CoreCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "openblas-core", abstract: "Prints the kernel set that OpenBLAS chose for this processor.",
        shouldDisplay: false)

    func run() throws {
        guard let core = OpenBLAS.coreName else { throw ValidationError("built without OpenBLAS") }
        print(core)
    }
}
