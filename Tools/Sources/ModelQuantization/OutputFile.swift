internal import Foundation
public import SparseKernels

/// Checks of a file that will be made, before its contents take hours.
public enum OutputFile {
    /// Throws unless a file can be written to a path without damage to another one.
    ///
    /// - Parameters:
    ///   - path: the file to make. Its folder must exist.
    ///   - others: the files that are read or made too, with descriptions such as "the model".
    ///   - replaces: whether an existing file may be replaced.
    /// - Throws: `.inputOutput` naming the path.
    public static func check(
        _ path: String, others: [(path: String, role: String)] = [], replaces: Bool
    ) throws(SparseKernelsError) {
        func expect(_ condition: Bool, _ expected: String, _ actual: String) throws(SparseKernelsError) {
            if !condition { throw SparseKernelsError(.inputOutput, path, expected: expected, actual: actual) }
        }
        try expect(!path.isEmpty && !path.utf8.contains(0), "a path without zero bytes", path.isEmpty ? "an empty text" : "one")
        for other in others {
            try expect(!isSame(path, other.path), "another file than \(other.role)", other.role)
        }
        var isDirectory: ObjCBool = false
        if FileManager.default.fileExists(atPath: path, isDirectory: &isDirectory) {
            try expect(!isDirectory.boolValue, "the path of a file", "a folder")
            try expect(replaces, "a file that does not exist yet, or --force", "a file")
        }
        try checkFolder(folder(of: path))
    }

    /// Throws unless files can be made in a folder.
    static func checkFolder(_ path: String) throws(SparseKernelsError) {
        var isDirectory: ObjCBool = false
        let exists = FileManager.default.fileExists(atPath: path, isDirectory: &isDirectory)
        guard exists && isDirectory.boolValue else {
            throw SparseKernelsError(
                .inputOutput, path, expected: "a folder to write into", actual: exists ? "a file" : "nothing there")
        }
        if access(path, W_OK | X_OK) != 0 { throw systemError(path, expected: "a folder to write into") }
    }

    /// The folder that a file is in or will be.
    static func folder(of path: String) -> String { URL(fileURLWithPath: path).deletingLastPathComponent().path }

    /// Whether two paths lead to one file, also through links, and also to one that does not exist yet.
    private static func isSame(_ a: String, _ b: String) -> Bool {
        func leadToOne(_ a: String, _ b: String) -> Bool {
            var (first, second) = (stat(), stat())
            return stat(a, &first) == 0 && stat(b, &second) == 0 && first.st_dev == second.st_dev
                && first.st_ino == second.st_ino
        }
        let names = [a, b].map { URL(fileURLWithPath: $0).lastPathComponent }
        return leadToOne(a, b) || (names[0] == names[1] && leadToOne(folder(of: a), folder(of: b)))
    }

    // MARK: - Room

    /// Throws when a folder's file system is known to have fewer free bytes than needed.
    ///
    /// - Parameters:
    ///   - bytes: the least number of bytes that will be written.
    ///   - path: the folder.
    ///   - free: the free bytes; nil means those that the system reports, if it does.
    static func checkRoom(for bytes: Int, in path: String, free: Int? = nil) throws(SparseKernelsError) {
        let attributes = try? FileManager.default.attributesOfFileSystem(forPath: path)
        guard let free = free ?? (attributes?[.systemFreeSize] as? NSNumber)?.intValue, free < bytes else { return }
        throw SparseKernelsError(
            .inputOutput, path, expected: "on a disk with \(megabytes(bytes)) free, for the finished layers and the output",
            actual: megabytes(free))
    }

    private static func megabytes(_ bytes: Int) -> String { String(format: "%.1f MB", Double(bytes) / 1e6) }
}
