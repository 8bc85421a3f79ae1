package import Foundation
package import Testing

/// Where the tests find files: in the checkout, and in a folder of data that is too large for it.
package enum TestData {
    /// The checkout that the tests were built from.
    package static let checkout = URL(fileURLWithPath: #filePath)
        .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()

    /// The path of a file or folder of the checkout.
    package static func path(_ relative: String) -> String { checkout.appendingPathComponent(relative).path }

    /// The folder with `goldens` (all recorded cases), `captures` (Q, K and V) and `models`, which need not be there: the one that the
    /// environment variable `SPARSEKERNELS_DATA` names, or else `shared` beside the checkout.
    package static let external =
        ProcessInfo.processInfo.environment["SPARSEKERNELS_DATA"] ?? checkout.deletingLastPathComponent().path + "/shared"

    /// Why a test that needs external data was skipped.
    package static let absence: Comment = "no such data in \(external), which SPARSEKERNELS_DATA can move"

    /// The path of an external file, or nil where it is absent.
    package static func externalFile(_ relative: String) -> String? {
        let path = "\(external)/\(relative)"
        return FileManager.default.fileExists(atPath: path) ? path : nil
    }

    /// The safetensors files below an external folder whose names begin with `prefix`, by path. None where it is absent.
    package static func externalFiles(in folder: String, prefix: String = "") -> [String] {
        let root = "\(external)/\(folder)"
        let paths = FileManager.default.enumerator(atPath: root)?.compactMap { $0 as? String } ?? []
        return paths.filter { path in
            path.hasSuffix(".safetensors") && (path.split(separator: "/").last ?? "").hasPrefix(prefix)
        }.sorted().map { "\(root)/\($0)" }
    }
}
