import Foundation
import Testing

/// The promises of the manifest to clients, and the lists that must agree with it.
@Suite("Manifest")
struct ManifestTests {
    @Test(
        "no trait is on by default",
        arguments: [
            "Package.swift", "Benchmarks/Package.swift", "Distributed/Package.swift", "Models/Package.swift",
            "Tools/Package.swift", "Fuzz/Package.swift", "Examples/Package.swift",
        ])
    func noDefaultTraits(_ path: String) throws {
        #expect(try !ProjectFiles.text(path).contains(".default("))
    }

    @Test("documentation is built for every product")
    func documentedProducts() throws {
        let manifest = try ProjectFiles.text("Package.swift")
        let facades = try #require(manifest.components(separatedBy: "let facades = [").last?.components(separatedBy: "]").first)
        var products = facades.split(separator: "\"").map(String.init).filter { $0.first?.isUppercase ?? false }
        products += manifest.matches(of: /\.library\(name: "(\w+)"/).map { String($0.output.1) }
        #expect(products.count > 3)
        let list = try #require(ProjectFiles.text(".spi.yml").components(separatedBy: "documentation_targets:").last)
        let documented = list.matches(of: /- (\w+)/).map { String($0.output.1) }
        #expect(documented.sorted() == products.sorted())
    }

    @Test("clients of the kernels never resolve messages, models or commands")
    func nestedPackages() throws {
        let manifest = try ProjectFiles.text("Package.swift")
        for package in ["Distributed", "Models", "Terminal", "Benchmarks", "Tools"] {
            #expect(!manifest.contains("path: \"\(package)\""), "\(package)")
        }
        #expect(!manifest.contains(/CMPI|"MPI"/))
    }

    /// CI relies on this: with the trait it only runs the suites of these folders and those of façades.
    @Test("the trait OpenBLAS reaches algebra and quantisers only")
    func traitReach() throws {
        let sources = ProjectFiles.root.appendingPathComponent("Sources")
        let paths = try FileManager.default.subpathsOfDirectory(atPath: sources.path).filter { $0.hasSuffix(".swift") }
        var conditional: [String] = []
        for path in paths {
            let text = try ProjectFiles.text("Sources/\(path)")
            if text.contains(/#(if|elseif)[^\n]*OpenBLAS/) { conditional.append(path) }
            let seesTrait = ["SparseKernels/LinearAlgebra/", "SparseKernels/LinearLayers/"].contains { path.hasPrefix($0) }
            if path.hasPrefix("SparseKernels/") && !seesTrait {
                #expect(!text.contains(/OpenBLAS|LowRankFactorization|LowRankQuantizer/), "\(path)")
            }
        }
        #expect(
            conditional.sorted() == [
                "SparseKernels/LinearAlgebra/LowRank/OpenBLAS+SVD.swift", "SparseKernels/LinearAlgebra/OpenBLAS.swift",
            ])
    }
}
