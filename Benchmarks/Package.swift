// swift-tools-version: 6.2
import PackageDescription

// A separate package, so that a client of the kernels never downloads dependencies of the benchmarks.

let language: [SwiftSetting] = [
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .enableUpcomingFeature("MemberImportVisibility"),
]

let package = Package(
    name: "SparseKernelsBenchmarks",
    platforms: [.macOS("26.0")],
    // For the other nested packages.
    products: [
        .library(name: "BenchmarkReport", targets: ["BenchmarkReport"]),
        .library(name: "ModelRunner", targets: ["ModelRunner"]),
    ],
    traits: [
        .trait(name: "OpenBLAS", description: "Adds OpenBLAS as a dense baseline; passed on to SparseKernels.")
    ],
    dependencies: [
        .package(
            name: "SparseKernels", path: "..",
            traits: [.trait(name: "OpenBLAS", condition: .when(traits: ["OpenBLAS"]))]),
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
    ],
    targets: [
        .executableTarget(
            name: "sparsekernels-bench",
            dependencies: [
                "BenchmarkReport", "ModelRunner",
                .product(name: "SparseKernels", package: "SparseKernels"),
                .product(name: "SparseKernelsReference", package: "SparseKernels"),
                .product(name: "GoldenReplay", package: "SparseKernels"),
                .product(name: "XAttention", package: "SparseKernels"),
                .product(name: "MInference", package: "SparseKernels"),
                .product(name: "SpargeAttention", package: "SparseKernels"),
                .product(name: "DuoAttention", package: "SparseKernels"),
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            swiftSettings: language),
        // Works on measured numbers and knows no kernel, so its tests build in seconds.
        .target(name: "BenchmarkReport", swiftSettings: language),
        // Runs the trained models from which benchmarks and tools take real activations.
        .target(
            name: "ModelRunner",
            dependencies: [
                .product(name: "SparseKernels", package: "SparseKernels"),
                .product(name: "SparseKernelsReference", package: "SparseKernels"),
            ],
            swiftSettings: language),
        .testTarget(name: "BenchmarkReportTests", dependencies: ["BenchmarkReport"], swiftSettings: language),
    ],
    swiftLanguageModes: [.v6]
)
