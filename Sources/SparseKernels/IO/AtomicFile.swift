#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#else
    import Darwin
#endif

/// The type of `write`, which tests replace.
typealias WriteCall = (_ descriptor: Int32, _ bytes: UnsafeRawPointer, _ count: Int) -> Int

/// A new file that replaces an old one in a single step, once it is complete and on the disk.
///
/// Until then it has its own name in the same directory, because a rename is atomic only inside one file system. Readers of the
/// destination see the old contents or the new ones, even after a crash.
struct AtomicFile {
    private let path: String
    private let temporaryPath: String
    private let descriptor: Int32
    private let writeCall: WriteCall

    /// Runs `produce` on a new file and moves the result to `path`.
    ///
    /// On any failure the temporary file is removed and `path` does not change, with one exception: the last step makes the
    /// rename itself durable, and when it fails the new contents are already in place.
    /// - Throws: `.inputOutput`, and the errors of `produce`.
    static func replace(
        _ path: String, writeCall: @escaping WriteCall = { write($0, $1, $2) },
        produce: (AtomicFile) throws(SparseKernelsError) -> Void
    ) throws(SparseKernelsError) {
        try requirePath(path)
        // The directory is opened first, so that its errors are found before anything is written.
        let directory = directoryPath(of: path)
        let directoryDescriptor = openRetrying(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        if directoryDescriptor < 0 { throw systemError(directory, expected: "a directory to write into") }
        defer { close(directoryDescriptor) }

        let file = try AtomicFile(path: path, directory: directory, writeCall: writeCall)
        do throws(SparseKernelsError) {
            try file.fill(with: produce)
            if rename(file.temporaryPath, path) != 0 { throw systemError(path, expected: "a file that can be replaced") }
        } catch {
            unlink(file.temporaryPath)
            throw error
        }
        // Some file systems report that they cannot synchronise a directory. They have nothing left to do.
        if synchronise(directoryDescriptor) != 0 && errno != EINVAL && errno != ENOTSUP {
            throw systemError(directory, expected: "a directory that can be synchronised; \(path) is written")
        }
    }

    /// Writes all bytes, with as many calls as that takes.
    func append(_ bytes: RawSpan) throws(SparseKernelsError) {
        // Darwin refuses calls of 2 GiB or more, and Linux shortens them.
        let callLimit = 1 << 30
        var failure: Int32? = nil
        bytes.withUnsafeBytes { buffer in
            var position = 0
            while position < buffer.count, let base = buffer.baseAddress {
                let written = writeCall(descriptor, base + position, min(buffer.count - position, callLimit))
                if written > 0 {
                    position += written
                } else if written < 0 && errno == EINTR {
                    continue
                } else {
                    // Repeating a call that writes nothing and reports no error would never end.
                    failure = written < 0 ? errno : EIO
                    return
                }
            }
        }
        if let failure { throw systemError(path, expected: "writable", number: failure) }
    }

    /// Creates the temporary file under a name that no other process and no earlier crash has used.
    private init(path: String, directory: String, writeCall: @escaping WriteCall) throws(SparseKernelsError) {
        self.path = path
        self.writeCall = writeCall
        for _ in 0..<8 {
            let candidate = "\(directory)/.sparsekernels-\(String(UInt64.random(in: .min ... .max), radix: 16)).tmp"
            let opened = openRetrying(candidate, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC)
            if opened >= 0 {
                temporaryPath = candidate
                descriptor = opened
                return
            }
            if errno != EEXIST { break }
        }
        throw systemError(directory, expected: "a directory to write into")
    }

    /// Writes, synchronises and closes. The descriptor is closed even on errors.
    private func fill(with produce: (AtomicFile) throws(SparseKernelsError) -> Void) throws(SparseKernelsError) {
        do throws(SparseKernelsError) {
            try produce(self)
            if synchronise(descriptor) != 0 { throw systemError(path, expected: "writable") }
        } catch {
            close(descriptor)
            throw error
        }
        // Network file systems may report a full disk only here. After EINTR the descriptor is closed too.
        if close(descriptor) != 0 && errno != EINTR { throw systemError(path, expected: "writable") }
    }
}

/// Calls `fsync`, and again when a signal interrupts it.
private func synchronise(_ descriptor: Int32) -> Int32 {
    while true {
        if fsync(descriptor) == 0 { return 0 }
        if errno != EINTR { return -1 }
    }
}

/// The part of a path before its last component.
private func directoryPath(of path: String) -> String {
    guard let slash = path.utf8.lastIndex(of: UInt8(ascii: "/")) else { return "." }
    return slash == path.startIndex ? "/" : String(path[..<slash])
}
