import Foundation

/// Models that are part of the repository.
public enum ModelData {
    /// The folder of `video-dit` in 4 bits; nil when the program is neither beside the sources it was built from nor beside a
    /// copy of their folder `Data`.
    public static var video: String? { folder("video-dit-w4a4") }

    /// The folder of `code-lm` in 4 bits; nil as for `video`.
    public static var code: String? { folder("code-lm-w4") }

    /// The folder of the library's sources, as a text to measure language models on; nil when the program is not beside them.
    public static var sources: String? {
        let repository = (0..<5).reduce(URL(fileURLWithPath: #filePath)) { url, _ in url.deletingLastPathComponent() }
        let path = repository.appendingPathComponent("Sources").path
        return FileManager.default.fileExists(atPath: path) ? path : nil
    }

    /// The picture of a desk, 1512 × 1512 pixels, which `sparse-vision draw` made; nil as for `video`.
    public static var deskPicture: String? { path("pictures/desk.png") }

    private static func folder(_ name: String) -> String? {
        path(name + "/config.json").map { String($0.dropLast("/config.json".count)) }
    }

    private static func path(_ name: String) -> String? {
        let package = (0..<4).reduce(URL(fileURLWithPath: #filePath)) { url, _ in url.deletingLastPathComponent() }
        let program = URL(fileURLWithPath: CommandLine.arguments[0]).deletingLastPathComponent()
        return [package, program].map { $0.appendingPathComponent("Data/\(name)").path }
            .first { FileManager.default.fileExists(atPath: $0) }
    }
}
