internal import Foundation
internal import SparseKernels

/// The directory beside an output file for finished layers, so that a run that was stopped can continue.
///
/// It is on the file system of the output, so that the last step is a rename. Only one process at a time may use it.
struct WorkDirectory: ~Copyable {
    let path: String
    private let output: String
    private let lock: Int32

    private static let layerSuffix = ".layer.safetensors"
    private static let lockName = "lock"
    static let digestKey = "sparsekernels.tool.digest"
    static let reportKey = "sparsekernels.tool.report"

    static func path(for output: String) -> String { output + ".partial" }

    /// Throws unless the directory can be made, or exists and can be written to. Changes nothing.
    /// - Throws: `.inputOutput`.
    static func check(for output: String) throws(SparseKernelsError) {
        let path = path(for: output)
        if FileManager.default.fileExists(atPath: path) { try OutputFile.checkFolder(path) }
    }

    /// The bytes of the finished layers.
    static func bytes(for output: String) -> Int {
        let path = path(for: output)
        let names = (try? FileManager.default.contentsOfDirectory(atPath: path)) ?? []
        return names.filter { $0.hasSuffix(layerSuffix) }.reduce(0) { sum, name in
            let attributes = try? FileManager.default.attributesOfItem(atPath: "\(path)/\(name)")
            return sum + ((attributes?[.size] as? NSNumber)?.intValue ?? 0)
        }
    }

    /// Makes or enters the directory, and removes incomplete files of a killed process.
    /// - Throws: `.inputOutput` when it cannot be made or written to, or another process uses it.
    init(for output: String) throws(SparseKernelsError) {
        let path = Self.path(for: output)
        if mkdir(path, 0o755) != 0 && errno != EEXIST { throw systemError(path, expected: "a directory that can be made") }
        let lock = open("\(path)/\(Self.lockName)", O_RDWR | O_CREAT | O_CLOEXEC, 0o644)
        if lock < 0 { throw systemError(path, expected: "a directory to write into") }
        if flock(lock, LOCK_EX | LOCK_NB) != 0 {
            let error = systemError(path, expected: "used by one process at a time")
            close(lock)
            throw error
        }
        let names = (try? FileManager.default.contentsOfDirectory(atPath: path)) ?? []
        for name in names where name != Self.lockName && !name.hasSuffix(Self.layerSuffix) { unlink("\(path)/\(name)") }
        self.path = path
        self.output = output
        self.lock = lock
    }

    deinit { close(lock) }

    /// Files are named by digest, because layer names may have any characters and be longer than file names.
    private func file(of layer: String) -> String {
        var digest = ContentDigest()
        digest.add(layer)
        return "\(path)/\(digest.text)\(Self.layerSuffix)"
    }

    /// The file of a layer that was finished with the same input and options; nil when there is none or it is incomplete.
    func finishedLayer(_ layer: String, digest: String) -> SafetensorsFile? {
        guard let file = try? SafetensorsFile(path: file(of: layer)) else { return nil }
        return file.metadata[Self.digestKey] == digest ? file : nil
    }

    /// Stores a finished layer in one step.
    func keep(_ layer: String, _ contents: SafetensorsWriter) throws(SparseKernelsError) -> SafetensorsFile {
        try contents.write(to: file(of: layer))
        return try SafetensorsFile(path: file(of: layer))
    }

    /// Writes the output file in one step, and removes the directory.
    ///
    /// The file is written in the directory first, so that a process that is stopped leaves nothing beside the output.
    consuming func publish(_ contents: SafetensorsWriter) throws(SparseKernelsError) {
        let complete = "\(path)/complete.safetensors"
        try contents.write(to: complete)
        if rename(complete, output) != 0 { throw systemError(output, expected: "a file that can be replaced") }
        // The rename must be on the disk before the layers are removed.
        let parent = open(URL(fileURLWithPath: output).deletingLastPathComponent().path, O_RDONLY | O_CLOEXEC)
        if parent >= 0 {
            fsync(parent)
            close(parent)
        }
        try? FileManager.default.removeItem(atPath: path)
    }
}

/// The error for `errno`.
func systemError(_ path: String, expected: String) -> SparseKernelsError {
    let number = errno
    let reason = number == EWOULDBLOCK ? "in use by another process" : String(cString: strerror(number))
    return SparseKernelsError(.inputOutput, path, expected: expected, actual: "\(reason) (errno \(number))")
}
