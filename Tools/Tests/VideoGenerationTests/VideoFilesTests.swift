import Foundation
import SparseKernels
import SparseKernelsModels
import SparseKernelsReference
import Testing

@testable import VideoGeneration

/// Whether the program is there and is not another one of its name.
private let hasImageMagick: Bool = {
    guard let tool = try? PictureTool() else { return false }
    let pixel = Array("P6\n1 1\n255\nabc".utf8)
    return (try? tool.run(["ppm:-", "gif:/dev/null"], input: pixel)) != nil
}()

@Suite("Files of videos")
struct VideoFilesTests {
    private let clip: VideoClip
    private let folder = NSTemporaryDirectory() + "sparsekernels-frames-\(UUID().uuidString)"

    init() throws { clip = try VideoClip(pixels: .normal([3, 3, 4, 5], seed: 1, scale: 0.5)) }

    @Test("without a tool, frames are portable pixmaps, enlarged")
    func pixmaps() throws {
        defer { try? FileManager.default.removeItem(atPath: folder) }
        let files = VideoFiles(tool: nil, scale: 3)
        let pattern = try files.writeFrames(clip, to: folder)
        #expect(pattern == "\(folder)/frame-00.ppm to frame-02.ppm")
        let bytes = try Data(contentsOf: URL(fileURLWithPath: folder + "/frame-01.ppm"))
        #expect(bytes.prefix(13) == Data("P6\n15 12\n255\n".utf8) && bytes.count == 13 + 15 * 12 * 3)
        #expect([UInt8](bytes.dropFirst(13)) == clip.bytes(ofFrame: 1, scale: 3))
        for write in [
            { try files.writeAnimation(clip, to: folder + "/a.gif") }, { try files.writeStrip([clip], to: folder + "/a.png") },
        ] {
            let error = try #require(throws: SparseKernelsError.self) { try write() }
            #expect(error.code == .notFound && error.argument == "ImageMagick")
        }
    }

    @Test("a strip has frames from the first to the last, and a row per clip")
    func strip() throws {
        let files = VideoFiles(tool: nil, scale: 1)
        let bytes = try files.strip([clip, clip], frames: 2)
        #expect(bytes.prefix(12) == Array("P6\n11 9\n255\n".utf8)[...] && bytes.count == 12 + 11 * 9 * 3)
        let row = Array(bytes.dropFirst(12).prefix(33))
        let (first, last) = (clip.bytes(ofFrame: 0), clip.bytes(ofFrame: 2))
        #expect(row == Array(first.prefix(15)) + [255, 255, 255] + Array(last.prefix(15)))
        #expect(Array(bytes.suffix(15)) == Array(last.suffix(15)))
        #expect(throws: SparseKernelsError.self) { try files.strip([], frames: 2) }
        let other = try VideoClip(pixels: Tensor(zeros: [3, 3, 5, 5]))
        #expect(throws: SparseKernelsError.self) { try files.strip([clip, other], frames: 2) }
    }

    @Test("a tool that is missing or fails says so")
    func tools() throws {
        let missing = try #require(throws: SparseKernelsError.self) { try PictureTool(searching: folder) }
        #expect(missing.code == .notFound && missing.expected.contains("apt-get install imagemagick"))
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: folder) }
        func script(_ text: String) throws -> VideoFiles {
            try Data("#!/bin/sh\n\(text)\n".utf8).write(to: URL(fileURLWithPath: folder + "/convert"))
            try FileManager.default.setAttributes([.posixPermissions: 0o755], ofItemAtPath: folder + "/convert")
            return VideoFiles(tool: try PictureTool(searching: "/nowhere:\(folder)"), scale: 40)
        }
        let failing = try script("echo no delegate for this image >&2; exit 3")
        let error = try #require(throws: SparseKernelsError.self) { try failing.writeAnimation(clip, to: folder + "/a.gif") }
        #expect(error.code == .inputOutput && error.actual == "no delegate for this image")
        // The pictures go through the pipe whole, one after the other.
        let storing = try script("cat > \"\(folder)/seen\"")
        try storing.writeAnimation(clip, to: folder + "/a.gif")
        let seen = try Data(contentsOf: URL(fileURLWithPath: folder + "/seen"))
        #expect([UInt8](seen) == (0..<3).flatMap { storing.pixmap(clip, frame: $0) })
    }

    @Test("the real program makes files of both kinds", .enabled(if: hasImageMagick))
    func realTool() throws {
        defer { try? FileManager.default.removeItem(atPath: folder) }
        let files = VideoFiles(tool: try PictureTool(), scale: 2)
        let pattern = try files.writeFrames(clip, to: folder)
        #expect(pattern.hasSuffix("frame-02.png"))
        try files.writeAnimation(clip, to: folder + "/video.gif")
        let gif = try Data(contentsOf: URL(fileURLWithPath: folder + "/video.gif"))
        // The width and height follow the signature.
        #expect(gif.prefix(4) == Data("GIF8".utf8) && gif[6] == 10 && gif[8] == 8)
        let png = try Data(contentsOf: URL(fileURLWithPath: folder + "/frame-02.png"))
        #expect(png[1..<4] == Data("PNG".utf8))
    }
}
