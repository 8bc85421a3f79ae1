package import Foundation
package import Testing

/// Finds files for the tests: in the checkout, and in a folder of data that are too large for it.
package enum TestData {
    /// The checkout from which the tests were built.
    package static let checkout = URL(fileURLWithPath: #filePath)
        .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()

    /// The path of a file or folder of the checkout.
    package static func path(_ relative: String) -> String { checkout.appendingPathComponent(relative).path }

    /// The optional folder with `goldens` (all recorded cases), `captures` (Q, K and V) and `models`: the value of the
    /// environment variable `SPARSEKERNELS_DATA`, or else `shared` beside the checkout.
    package static let external =
        ProcessInfo.processInfo.environment["SPARSEKERNELS_DATA"] ?? checkout.deletingLastPathComponent().path + "/shared"

    /// The reason for skipping a test that needs external data.
    package static let absence: Comment = "no such data in \(external), which SPARSEKERNELS_DATA can move"

    /// The path of an external file, or nil if it does not exist.
    package static func externalFile(_ relative: String) -> String? {
        let path = "\(external)/\(relative)"
        return FileManager.default.fileExists(atPath: path) ? path : nil
    }

    /// The safetensors files below an external folder whose names begin with `prefix`, by path; none without the folder.
    package static func externalFiles(in folder: String, prefix: String = "") -> [String] {
        let root = "\(external)/\(folder)"
        let paths = FileManager.default.enumerator(atPath: root)?.compactMap { $0 as? String } ?? []
        return paths.filter { path in
            path.hasSuffix(".safetensors") && (path.split(separator: "/").last ?? "").hasPrefix(prefix)
        }.sorted().map { "\(root)/\($0)" }
    }
}
