internal import Foundation
public import SparseKernels

/// ImageMagick, which packs frames into PNG and GIF files. Frames go to it through a pipe, as portable pixmaps.
///
/// A program and not a library, so that this package needs no headers to be built, and runs without it as far as it goes.
public struct PictureTool: Hashable, Sendable {
    /// The program: `magick` of version 7, or `convert` of version 6.
    public let path: String

    /// Looks for the program in the folders of `PATH`.
    /// - Throws: `.notFound`, which says how to install it.
    public init(searching folders: String? = nil) throws(SparseKernelsError) {
        let folders = folders ?? ProcessInfo.processInfo.environment["PATH"] ?? ""
        for name in ["magick", "convert"] {
            for folder in folders.split(separator: ":") {
                let path = "\(folder)/\(name)"
                if FileManager.default.isExecutableFile(atPath: path) {
                    self.path = path
                    return
                }
            }
        }
        throw SparseKernelsError(
            .notFound, "ImageMagick",
            expected: "installed, for GIF and PNG files (Debian, Ubuntu: apt-get install imagemagick), or --ppm",
            actual: "neither magick nor convert in PATH")
    }

    /// Runs the program with a portable pixmap, or several one after the other, on its standard input.
    /// - Throws: `.inputOutput` with what the program said.
    func run(_ arguments: [String], input: [UInt8]) throws(SparseKernelsError) {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: path)
        process.arguments = arguments
        let (standardInput, standardError) = (Pipe(), Pipe())
        process.standardInput = standardInput
        process.standardError = standardError
        process.standardOutput = FileHandle.nullDevice
        var failure: String?
        // A program that ends early closes the pipe, which would end this process too.
        let previous = signal(SIGPIPE, SIG_IGN)
        defer { signal(SIGPIPE, previous) }
        do {
            try process.run()
            do { try standardInput.fileHandleForWriting.write(contentsOf: Data(input)) } catch {
                failure = "it stopped reading"
            }
            try? standardInput.fileHandleForWriting.close()
            let messages = standardError.fileHandleForReading.readDataToEndOfFile()
            process.waitUntilExit()
            let text = String(decoding: messages.prefix(300), as: UTF8.self).split(separator: "\n").joined(separator: "; ")
            if process.terminationStatus != 0 || failure != nil {
                failure = text.isEmpty ? failure ?? "status \(process.terminationStatus)" : text
            }
        } catch {
            failure = error.localizedDescription
        }
        if let failure {
            throw SparseKernelsError(.inputOutput, path, expected: "a program that packs pictures", actual: failure)
        }
    }
}
