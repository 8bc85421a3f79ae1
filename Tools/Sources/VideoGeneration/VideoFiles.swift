internal import Foundation
public import SparseKernels
public import SparseKernelsModels

/// Writes videos as files that people can look at, each pixel as a square of `scale` pixels.
public struct VideoFiles: Sendable {
    /// nil writes single frames as portable pixmaps, which need no other program, and nothing else.
    public let tool: PictureTool?
    /// Pixels of a file for one of the video.
    public let scale: Int
    /// Frames per second of GIF files.
    public let rate: Int

    public init(tool: PictureTool?, scale: Int = 4, rate: Int = 8) {
        self.tool = tool
        self.scale = max(1, scale)
        self.rate = max(1, min(50, rate))
    }

    /// Writes an animated GIF that starts again at its end.
    /// - Throws: `.inputOutput`; `.notFound` without the tool.
    public func writeAnimation(_ clip: VideoClip, to path: String) throws(SparseKernelsError) {
        guard let tool else { throw Self.missingTool }
        let frames = (0..<clip.frames).flatMap { pixmap(clip, frame: $0) }
        try tool.run(["-delay", "\(100 / rate)", "-loop", "0", "ppm:-", "gif:\(path)"], input: frames)
    }

    /// Writes a file per frame, `frame-00.png` and so on, into a folder that is made.
    /// - Returns: the pattern of the names, for people.
    /// - Throws: `.inputOutput`.
    @discardableResult
    public func writeFrames(_ clip: VideoClip, to folder: String) throws(SparseKernelsError) -> String {
        do { try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true) } catch {
            throw SparseKernelsError(
                .inputOutput, folder, expected: "a folder that can be made", actual: error.localizedDescription)
        }
        func name(_ frame: Int, _ suffix: String) -> String { String(format: "%@/frame-%02d.%@", folder, frame, suffix) }
        for frame in 0..<clip.frames {
            let bytes = pixmap(clip, frame: frame)
            if let tool {
                try tool.run(["ppm:-", "png:\(name(frame, "png"))"], input: bytes)
            } else {
                try Self.write(bytes, to: name(frame, "ppm"))
            }
        }
        let suffix = tool == nil ? "ppm" : "png"
        return "\(folder)/frame-00.\(suffix) to frame-\(String(format: "%02d", clip.frames - 1)).\(suffix)"
    }

    /// Writes one PNG file with a row per clip: some frames side by side, drawn evenly from the first to the last.
    /// - Throws: `.invalidShape` for clips of several sizes, `.invalidArgument` for none, `.inputOutput`, `.notFound`.
    public func writeStrip(_ clips: [VideoClip], frames: Int = 6, to path: String) throws(SparseKernelsError) {
        guard let tool else { throw Self.missingTool }
        try tool.run(["ppm:-", "png:\(path)"], input: strip(clips, frames: frames))
    }

    /// The portable pixmap of `writeStrip`, with white lines of `scale` pixels between frames.
    func strip(_ clips: [VideoClip], frames count: Int) throws(SparseKernelsError) -> [UInt8] {
        guard let first = clips.first, count >= 1 else {
            throw SparseKernelsError(.invalidArgument, "strip", expected: "a clip and a frame or more", actual: "none")
        }
        for clip in clips where clip.pixels.shape != first.pixels.shape {
            throw SparseKernelsError(
                .invalidShape, "strip", expected: "\(first.pixels.shape)", actual: "\(clip.pixels.shape)")
        }
        let frames = (0..<count).map { count == 1 ? 0 : ($0 * (first.frames - 1) + (count - 1) / 2) / (count - 1) }
        let (width, height) = (first.width * scale, first.height * scale)
        let (totalWidth, totalHeight) = (count * (width + scale) - scale, clips.count * (height + scale) - scale)
        var picture = [UInt8](repeating: 255, count: totalWidth * totalHeight * 3)
        for (row, clip) in clips.enumerated() {
            for (column, frame) in frames.enumerated() {
                let bytes = clip.bytes(ofFrame: frame, scale: scale)
                for y in 0..<height {
                    let target = ((row * (height + scale) + y) * totalWidth + column * (width + scale)) * 3
                    picture.replaceSubrange(target..<target + width * 3, with: bytes[y * width * 3..<(y + 1) * width * 3])
                }
            }
        }
        return Self.header(totalWidth, totalHeight) + picture
    }

    /// A frame as a portable pixmap.
    func pixmap(_ clip: VideoClip, frame: Int) -> [UInt8] {
        Self.header(clip.width * scale, clip.height * scale) + clip.bytes(ofFrame: frame, scale: scale)
    }

    private static func header(_ width: Int, _ height: Int) -> [UInt8] { Array("P6\n\(width) \(height)\n255\n".utf8) }

    private static func write(_ bytes: [UInt8], to path: String) throws(SparseKernelsError) {
        do { try Data(bytes).write(to: URL(fileURLWithPath: path), options: .atomic) } catch {
            throw SparseKernelsError(
                .inputOutput, path, expected: "a file that can be written", actual: error.localizedDescription)
        }
    }

    private static let missingTool = SparseKernelsError(
        .notFound, "ImageMagick", expected: "installed, for GIF and PNG files", actual: "not there")
}
