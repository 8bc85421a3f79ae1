#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#else
    import Darwin
#endif

/// Read-only bytes with an owner: a whole file mapped into memory, or an aligned copy of bytes.
///
/// Pages of a mapped file are loaded when they are first read. The mapping is private, but the file must not be truncated while
/// it is open: the operating system would raise a signal for a read past the new end.
final class FileMapping: @unchecked Sendable {
    private enum Owner {
        case operatingSystem
        case heap
    }

    /// All bytes. They are valid only as long as the mapping exists.
    let buffer: UnsafeRawBufferPointer
    private let owner: Owner

    /// Maps a regular file.
    /// - Throws: `.inputOutput` when the file cannot be opened or mapped, or is a directory, a pipe or a device.
    init(path: String) throws(SparseKernelsError) {
        try requirePath(path)
        // Without O_NONBLOCK, opening a pipe without a writer would wait for ever. It changes nothing for files.
        let descriptor = openRetrying(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC)
        if descriptor < 0 { throw systemError(path, expected: "a readable file") }
        defer { close(descriptor) }
        var status = stat()
        if fstat(descriptor, &status) != 0 { throw systemError(path, expected: "a readable file") }
        try require(
            status.st_mode & S_IFMT == S_IFREG, .inputOutput, path, expected: "a regular file",
            actual: status.st_mode & S_IFMT == S_IFDIR ? "a directory" : "a pipe, socket or device")

        let count = Int(status.st_size)
        if count == 0 {
            // An empty range cannot be mapped.
            buffer = UnsafeRawBufferPointer(start: nil, count: 0)
            owner = .heap
            return
        }
        guard let start = mmap(nil, count, PROT_READ, MAP_PRIVATE, descriptor, 0), start != MAP_FAILED else {
            throw systemError(path, expected: "a file that can be mapped into memory")
        }
        buffer = UnsafeRawBufferPointer(start: start, count: count)
        owner = .operatingSystem
    }

    /// Copies bytes to memory with the alignment of a mapped file.
    init(copying bytes: [UInt8]) {
        let copy = UnsafeMutableRawBufferPointer.allocate(byteCount: bytes.count, alignment: 64)
        copy.copyBytes(from: bytes)
        buffer = UnsafeRawBufferPointer(copy)
        owner = .heap
    }

    deinit {
        switch owner {
        case .operatingSystem: munmap(UnsafeMutableRawPointer(mutating: buffer.baseAddress), buffer.count)
        case .heap: buffer.deallocate()
        }
    }
}

// MARK: - System calls

/// Throws for paths that C functions would misread, because they stop at the first zero byte.
func requirePath(_ path: String) throws(SparseKernelsError) {
    try require(
        !path.isEmpty && !path.utf8.contains(0), .inputOutput, "path", expected: "a path without zero bytes",
        actual: path.isEmpty ? "an empty string" : quoted(path))
}

/// Calls `open`, and again when a signal interrupts it. Files that it creates get mode 0644, minus the process's umask.
func openRetrying(_ path: String, _ flags: Int32) -> Int32 {
    while true {
        let descriptor = open(path, flags, 0o644)
        if descriptor >= 0 || errno != EINTR { return descriptor }
    }
}

/// The error for `errno`, or for another number.
func systemError(_ path: String, expected: String, number: Int32 = errno) -> SparseKernelsError {
    let reason = strerror(number).map { String(cString: $0) } ?? "unknown error"
    return SparseKernelsError(.inputOutput, path, expected: expected, actual: "\(reason) (errno \(number))")
}

// MARK: - Text in messages

/// Text from a file in the form for messages: in quotation marks, printable, and short.
package func quoted(_ text: String, limit: Int = 80) -> String {
    var result = "\""
    for scalar in text.unicodeScalars.prefix(limit) { result += scalar.escaped(asASCII: false) }
    return result + (text.unicodeScalars.dropFirst(limit).isEmpty ? "\"" : "\"…")
}

/// A list of numbers in the form for messages, which is short.
package func abbreviated(_ numbers: [Int], limit: Int = 8) -> String {
    if numbers.count <= limit { return "\(numbers)" }
    return "[" + numbers.prefix(limit).map(String.init).joined(separator: ", ") + ", … \(numbers.count) in all]"
}
