// swift-tools-version: 6.2
import PackageDescription

// A separate package, so that clients of the kernels never download the dependencies of the benchmarks.

let language: [SwiftSetting] = [
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .enableUpcomingFeature("MemberImportVisibility"),
]

let package = Package(
    name: "SparseKernelsBenchmarks",
    platforms: [.macOS("26.0")],
    traits: [
        .trait(name: "OpenBLAS", description: "Adds OpenBLAS as a dense baseline; passed on to SparseKernels.")
    ],
    dependencies: [
        .package(
            name: "SparseKernels", path: "..",
            traits: [.trait(name: "OpenBLAS", condition: .when(traits: ["OpenBLAS"]))]),
        // For layers of trained models with their recorded inputs.
        .package(
            name: "SparseKernelsModels", path: "../Models",
            traits: [.trait(name: "OpenBLAS", condition: .when(traits: ["OpenBLAS"]))]),
        // For ranks.
        .package(
            name: "SparseKernelsDistributed", path: "../Distributed",
            traits: [.trait(name: "OpenBLAS", condition: .when(traits: ["OpenBLAS"]))]),
        // For progress, tables, number formats and charts.
        .package(name: "SparseKernelsTerminal", path: "../Terminal"),
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
    ],
    targets: [
        .executableTarget(
            name: "sparsekernels-bench",
            dependencies: [
                "BenchmarkReport",
                .product(name: "SparseKernelsModels", package: "SparseKernelsModels"),
                .product(name: "Communication", package: "SparseKernelsDistributed"),
                .product(name: "SequenceParallel", package: "SparseKernelsDistributed"),
                .product(name: "SequenceParallelReplay", package: "SparseKernelsDistributed"),
                .product(name: "Terminal", package: "SparseKernelsTerminal"),
                .product(name: "SparseKernels", package: "SparseKernels"),
                .product(name: "SparseKernelsReference", package: "SparseKernels"),
                .product(name: "GoldenReplay", package: "SparseKernels"),
                .product(name: "XAttention", package: "SparseKernels"),
                .product(name: "MInference", package: "SparseKernels"),
                .product(name: "NemotronH", package: "SparseKernels"),
                .product(name: "STORM", package: "SparseKernels"),
                .product(name: "CATS", package: "SparseKernels"),
                .product(name: "PolarSparsity", package: "SparseKernels"),
                .product(name: "SparseKernelsTraining", package: "SparseKernels"),
                .product(name: "SparseLoRA", package: "SparseKernels"),
                .product(name: "NVILA", package: "SparseKernels"),
                .product(name: "PS3", package: "SparseKernels"),
                .product(name: "SpargeAttention", package: "SparseKernels"),
                .product(name: "SparseVideoGen", package: "SparseKernels"),
                .product(name: "DuoAttention", package: "SparseKernels"),
                .product(name: "QServe", package: "SparseKernels"),
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            swiftSettings: language),
        // The processing of measured numbers. It uses no kernels, so its tests need none.
        .target(
            name: "BenchmarkReport", dependencies: [.product(name: "Terminal", package: "SparseKernelsTerminal")],
            swiftSettings: language),
        .testTarget(
            name: "BenchmarkReportTests",
            dependencies: ["BenchmarkReport", .product(name: "Terminal", package: "SparseKernelsTerminal")],
            swiftSettings: language),
    ],
    swiftLanguageModes: [.v6]
)
