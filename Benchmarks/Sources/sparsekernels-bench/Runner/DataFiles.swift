import Foundation

/// Finds captured tensors: those that are included in the benchmarks, and larger ones in `SPARSEKERNELS_DATA`.
enum DataFiles {
    /// The folder beside this package's sources, or `Data` beside a program that was copied to another machine.
    private static let shipped: [String] = {
        let package = (0..<4).reduce(URL(fileURLWithPath: #filePath)) { url, _ in url.deletingLastPathComponent() }
        let program = URL(fileURLWithPath: CommandLine.arguments[0]).deletingLastPathComponent()
        return [package, program].map { $0.appendingPathComponent("Data").path }
    }()

    private static let external: String = {
        if let folder = ProcessInfo.processInfo.environment["SPARSEKERNELS_DATA"] { return folder }
        return shipped[0] + "/../../../shared"
    }()

    /// The path of a capture; nil when this machine does not have it.
    static func capture(_ name: String) -> String? {
        (shipped + [external + "/captures"]).map { "\($0)/\(name).safetensors" }
            .first { FileManager.default.fileExists(atPath: $0) }
    }

    /// The path of a file or folder of the external data; nil when this machine does not have it.
    static func external(_ path: String) -> String? {
        FileManager.default.fileExists(atPath: "\(external)/\(path)") ? "\(external)/\(path)" : nil
    }

    /// A text on which code-lm was not trained: a source file of this package, if the program was built beside it.
    static var text: String? {
        let path = shipped[0] + "/../../Sources/SparseKernels/Attention/Dense/DenseAttention.swift"
        return FileManager.default.fileExists(atPath: path) ? path : nil
    }
}
