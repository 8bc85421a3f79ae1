import Foundation

/// The machine and the build of a run. Without them numbers cannot be compared with others.
public struct Machine: Codable, Sendable, Equatable {
    public var cpu: String
    public var cores: Int
    /// The best instruction set that the kernels found.
    public var isa: String
    /// The short hash of the sources, with `+dirty` when tracked files differ from it.
    public var commit: String
    public var compiler: String
    /// The dense baseline: its version, its kernels, and who chose them. Nil in reports of older versions.
    public var baseline: String?

    public init(
        cpu: String, cores: Int, isa: String, commit: String, compiler: String, baseline: String? = nil
    ) {
        self.cpu = cpu
        self.cores = cores
        self.isa = isa
        self.commit = commit
        self.compiler = compiler
        self.baseline = baseline
    }

    /// This machine. Unknown labels are "unknown", and a benchmark does not fail because of them.
    public static func current(isa: String) -> Machine {
        Machine(
            cpu: processorName() ?? "unknown", cores: ProcessInfo.processInfo.activeProcessorCount, isa: isa,
            commit: sourceCommit() ?? "unknown", compiler: compilerVersion())
    }
}

// MARK: - Sources of the labels

extension Machine {
    private static func processorName() -> String? {
        #if canImport(Darwin)
            var size = 0
            guard sysctlbyname("machdep.cpu.brand_string", nil, &size, nil, 0) == 0, size > 0 else { return nil }
            var bytes = [UInt8](repeating: 0, count: size)
            guard sysctlbyname("machdep.cpu.brand_string", &bytes, &size, nil, 0) == 0 else { return nil }
            return String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
        #else
            guard let text = try? String(contentsOfFile: "/proc/cpuinfo", encoding: .utf8) else { return nil }
            // ARM kernels have no "model name"; some have "Hardware" or "Model" lines at the end.
            for key in ["model name", "Hardware", "Model"] {
                for line in text.split(separator: "\n") {
                    let parts = line.split(separator: ":", maxSplits: 1).map { $0.trimmingCharacters(in: .whitespaces) }
                    if parts.count == 2, parts[0] == key { return parts[1] }
                }
            }
            return nil
        #endif
    }

    /// The features of this machine for the choice among the baseline's kernels, from the flags that Linux reports.
    public static func baselineFeatures() -> (features: Set<BaselineKernels.Feature>, isAMD: Bool) {
        #if os(Linux)
            let text = (try? String(contentsOfFile: "/proc/cpuinfo", encoding: .utf8)) ?? ""
            return BaselineKernels.features(cpuinfo: text)
        #else
            return ([], false)
        #endif
    }

    /// Runs git in the folder of this file, because the program's working folder may belong to another repository.
    private static func sourceCommit(file: String = #filePath) -> String? {
        let folder = URL(fileURLWithPath: file).deletingLastPathComponent().path
        return output(of: ["git", "-C", folder, "describe", "--always", "--dirty=+dirty", "--exclude=*"])
    }

    /// The version with which the code was compiled, made precise by the `swift` in the path if it is the same.
    private static func compilerVersion() -> String {
        #if compiler(>=6.5)
            return output(of: ["swift", "--version"])?.firstLine ?? "Swift 6.5 or later"
        #else
            #if compiler(>=6.4)
                let version = "6.4"
            #elseif compiler(>=6.3)
                let version = "6.3"
            #else
                let version = "6.2"
            #endif
            let found = output(of: ["swift", "--version"])?.firstLine
            if let found, found.contains("Swift version \(version)") { return found }
            return "Swift \(version)"
        #endif
    }

    /// The standard output of a program in the path; nil if there is no such program or it fails.
    private static func output(of command: [String]) -> String? {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
        process.arguments = command
        let pipe = Pipe()
        process.standardInput = FileHandle.nullDevice
        process.standardOutput = pipe
        process.standardError = FileHandle.nullDevice
        guard (try? process.run()) != nil else { return nil }
        let data = (try? pipe.fileHandleForReading.readToEnd()) ?? Data()
        process.waitUntilExit()
        guard process.terminationStatus == 0 else { return nil }
        let text = String(decoding: data, as: UTF8.self).trimmingCharacters(in: .whitespacesAndNewlines)
        return text.isEmpty ? nil : text
    }
}

extension String {
    fileprivate var firstLine: String {
        String(prefix { !$0.isNewline })
    }
}
