import ArgumentParser
import Foundation
import SparseKernels
import SparseKernelsModels
import Testing

@testable import SparseVisionTool

@Suite("The command line of sparse-vision")
struct VisionCommandTests {
    /// What the command prints when it refuses arguments.
    private func refusal(_ arguments: [String]) -> String {
        do {
            _ = try SparseVisionCommand.parseAsRoot(arguments)
            return ""
        } catch {
            return SparseVisionCommand.message(for: error)
        }
    }

    @Test("draw takes a side or rows and columns")
    func sizes() throws {
        for size in ["0", "-3", "3x", "3x4x5", "axb", "0x4"] {
            #expect(refusal(["draw", "--size=\(size)", "a.png"]).contains("--size must be"), "\(size)")
        }
        #expect(refusal(["draw", "--size", "3x4", "a.png"]) == "" && refusal(["draw", "a.png"]) == "")
        #expect(GridSize(pixels: "12") == GridSize(side: 12))
        #expect(GridSize(pixels: "3x4") == GridSize(rows: 3, columns: 4))
    }

    @Test("draw writes a file of the size and kind of its name")
    func draw() throws {
        let folder = NSTemporaryDirectory() + "sparse-vision-\(UUID().uuidString)"
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: folder) }
        for name in ["a.png", "a.ppm"] {
            var command = try #require(
                try SparseVisionCommand.parseAsRoot(["draw", "--size", "20x30", folder + "/" + name]) as? DrawCommand)
            try command.run()
        }
        let png = try Picture(path: folder + "/a.png")
        #expect(png.size == GridSize(rows: 20, columns: 30))
        #expect(try Picture(path: folder + "/a.ppm") == png)
    }
}
