import Foundation
import TestSupport
import Testing

#if DEBUG
    @testable import SparseKernels
#else
    import SparseKernels
#endif

@Suite struct AtomicFileTests {
    private func writer(_ value: Float) throws -> SafetensorsWriter {
        var writer = SafetensorsWriter()
        try writer.add("x", try Tensor<Float>([1], [value]))
        return writer
    }

    @Test func missingDirectory() throws {
        let directory = try TemporaryDirectory()
        expectError(.inputOutput, describing: "No such file or directory") {
            try writer(1).write(to: "\(directory.path)/none/f.safetensors")
        }
        #expect(directory.contents == [])
    }

    @Test func destinationIsADirectory() throws {
        let directory = try TemporaryDirectory()
        try FileManager.default.createDirectory(atPath: "\(directory.path)/d", withIntermediateDirectories: true)
        try Data("keep".utf8).write(to: URL(fileURLWithPath: "\(directory.path)/d/file"))
        let failures = [
            ("\(directory.path)/d", "directory"), ("\(directory.path)/d/", "directory"), (directory.path, "directory"),
            ("", "an empty string"), ("a\0b", "zero bytes"),
        ]
        for (path, message) in failures { expectError(.inputOutput, describing: message) { try writer(1).write(to: path) } }
        #expect(directory.contents == ["d"])
        #expect(directory.bytes("d/file") == Array("keep".utf8))
        #expect(try FileManager.default.contentsOfDirectory(atPath: "\(directory.path)/d") == ["file"])
    }

    @Test(.enabled(if: getuid() != 0, "the superuser may write to a read-only directory"))
    func readOnlyDirectory() throws {
        let directory = try TemporaryDirectory()
        try writer(1).write(to: "\(directory.path)/f.safetensors")
        chmod(directory.path, 0o500)
        defer { chmod(directory.path, 0o700) }
        expectError(.inputOutput, describing: "Permission denied") {
            try writer(2).write(to: "\(directory.path)/f.safetensors")
        }
        #expect(directory.contents == ["f.safetensors"])
        #expect(try directory.bytes("f.safetensors") == writer(1).encoded())
    }

    @Test func relativePathsAndLongNames() throws {
        let directory = try TemporaryDirectory()
        // The name has the maximum length, which the temporary name must not exceed.
        let name = String(repeating: "n", count: 255)
        try writer(3).write(to: "\(directory.path)/./\(name)")
        #expect(directory.contents == [name])
        let local = "sparsekernels-\(UUID().uuidString).safetensors"
        defer { unlink(local) }
        try writer(3).write(to: local)
        #expect(try SafetensorsFile(path: local).floatTensor("x").elements == [3])
    }

    @Test func modeIsThatOfAnOrdinaryFile() throws {
        let directory = try TemporaryDirectory()
        try writer(1).write(to: "\(directory.path)/f")
        let mode = try FileManager.default.attributesOfItem(atPath: "\(directory.path)/f")[.posixPermissions] as? Int
        let mask = umask(0)
        umask(mask)
        #expect(mode == 0o644 & ~Int(mask))
    }

    #if DEBUG
        /// The disk becomes full at some byte of the new file.
        @Test(arguments: [0, 1, 5, 99])
        func failureWhileWritingKeepsTheOldFile(_ capacity: Int) throws {
            let directory = try TemporaryDirectory()
            let path = "\(directory.path)/f"
            try Data("old".utf8).write(to: URL(fileURLWithPath: path))
            var room = capacity
            let limited: WriteCall = { descriptor, bytes, count in
                if room == 0 {
                    errno = ENOSPC
                    return -1
                }
                let written = write(descriptor, bytes, min(count, room))
                room -= written
                return written
            }
            expectError(.inputOutput, describing: "No space left on device") {
                try AtomicFile.replace(path, writeCall: limited) { file throws(SparseKernelsError) in
                    try file.append([UInt8](repeating: 7, count: 100).span.bytes)
                }
            }
            #expect(directory.contents == ["f"])
            #expect(directory.bytes("f") == Array("old".utf8))
        }

        @Test func failureOfTheProducerKeepsTheOldFile() throws {
            let directory = try TemporaryDirectory()
            let path = "\(directory.path)/f"
            try Data("old".utf8).write(to: URL(fileURLWithPath: path))
            expectError(.inputOutput, describing: "the producer failed") {
                try AtomicFile.replace(path) { file throws(SparseKernelsError) in
                    try file.append([1, 2, 3].span.bytes)
                    throw SparseKernelsError(.inputOutput, "x", expected: "y", actual: "the producer failed")
                }
            }
            #expect(directory.contents == ["f"])
            #expect(directory.bytes("f") == Array("old".utf8))
        }

        @Test func shortAndInterruptedWritesGoOn() throws {
            let directory = try TemporaryDirectory()
            let bytes = (0..<1000).map { UInt8(truncatingIfNeeded: $0) }
            var calls = 0
            let hesitant: WriteCall = { descriptor, start, count in
                calls += 1
                if calls % 3 == 0 {
                    errno = EINTR
                    return -1
                }
                return write(descriptor, start, min(count, 7))
            }
            try AtomicFile.replace("\(directory.path)/f", writeCall: hesitant) { file throws(SparseKernelsError) in
                try file.append(bytes.span.bytes)
            }
            #expect(directory.bytes("f") == bytes)
            #expect(calls > 200)
        }

        @Test func aWriteThatMakesNoProgressFails() throws {
            let directory = try TemporaryDirectory()
            expectError(.inputOutput, describing: "Input/output error") {
                try AtomicFile.replace("\(directory.path)/f", writeCall: { _, _, _ in 0 }) {
                    file throws(SparseKernelsError) in try file.append([1].span.bytes)
                }
            }
            #expect(directory.contents == [])
        }
    #endif
}
