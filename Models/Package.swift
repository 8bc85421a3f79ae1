// swift-tools-version: 6.2
import PackageDescription

// Trained models over the operators of SparseKernels: architectures, loading, recording. They are a separate package, so that
// clients of the kernels get no models, and benchmarks, tools and examples share them without depending on each other.

let language: [SwiftSetting] = [
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .enableUpcomingFeature("MemberImportVisibility"),
]

let package = Package(
    name: "SparseKernelsModels",
    platforms: [.macOS("26.0")],
    products: [
        .library(name: "SparseKernelsModels", targets: ["SparseKernelsModels"]),
        .library(name: "SparseKernelsFineTuning", targets: ["SparseKernelsFineTuning"]),
    ],
    traits: [
        .trait(name: "OpenBLAS", description: "Passed on to SparseKernels.")
    ],
    dependencies: [
        .package(
            name: "SparseKernels", path: "..",
            traits: [.trait(name: "OpenBLAS", condition: .when(traits: ["OpenBLAS"]))]),
        // For models over several ranks.
        .package(
            name: "SparseKernelsDistributed", path: "../Distributed",
            traits: [.trait(name: "OpenBLAS", condition: .when(traits: ["OpenBLAS"]))]),
    ],
    targets: [
        .target(
            name: "SparseKernelsModels",
            dependencies: [
                .product(name: "Communication", package: "SparseKernelsDistributed"),
                .product(name: "SequenceParallel", package: "SparseKernelsDistributed"),
                .product(name: "SparseKernels", package: "SparseKernels"),
                .product(name: "SparseKernelsReference", package: "SparseKernels"),
                .product(name: "FastDLLM", package: "SparseKernels"),
                .product(name: "PS3", package: "SparseKernels"),
                .product(name: "LServe", package: "SparseKernels"),
                .product(name: "MInference", package: "SparseKernels"),
                .product(name: "NemotronH", package: "SparseKernels"),
                .product(name: "QServe", package: "SparseKernels"),
                .product(name: "Quest", package: "SparseKernels"),
                .product(name: "ReasoningBranches", package: "SparseKernels"),
                .product(name: "SVDQuant", package: "SparseKernels"),
                .product(name: "CATS", package: "SparseKernels"),
                .product(name: "PolarSparsity", package: "SparseKernels"),
                .product(name: "SpargeAttention", package: "SparseKernels"),
                .product(name: "SparseVideoGen", package: "SparseKernels"),
                .product(name: "Twilight", package: "SparseKernels"),
                .product(name: "XAttention", package: "SparseKernels"),
            ],
            swiftSettings: language),
        // Training of adapters, which programs that only run models do without.
        .target(
            name: "SparseKernelsFineTuning",
            dependencies: [
                "SparseKernelsModels",
                .product(name: "SVDQuant", package: "SparseKernels"),
                .product(name: "SparseKernels", package: "SparseKernels"),
                .product(name: "SparseKernelsTraining", package: "SparseKernels"),
                .product(name: "SparseLoRA", package: "SparseKernels"),
            ],
            swiftSettings: language),
        .testTarget(
            name: "SparseKernelsFineTuningTests",
            dependencies: [
                "SparseKernelsFineTuning", "SparseKernelsModels",
                .product(name: "SVDQuant", package: "SparseKernels"),
                .product(name: "SparseKernels", package: "SparseKernels"),
                .product(name: "SparseKernelsTraining", package: "SparseKernels"),
                .product(name: "SparseLoRA", package: "SparseKernels"),
            ],
            swiftSettings: language),
        .testTarget(
            name: "SparseKernelsModelsTests",
            dependencies: [
                "SparseKernelsModels",
                .product(name: "Communication", package: "SparseKernelsDistributed"),
                .product(name: "SparseKernels", package: "SparseKernels"),
                .product(name: "FastDLLM", package: "SparseKernels"),
                .product(name: "PS3", package: "SparseKernels"),
                .product(name: "CATS", package: "SparseKernels"),
                .product(name: "PolarSparsity", package: "SparseKernels"),
                .product(name: "NemotronH", package: "SparseKernels"),
                .product(name: "SparseKernelsReference", package: "SparseKernels"),
                .product(name: "ReasoningBranches", package: "SparseKernels"),
                .product(name: "SVDQuant", package: "SparseKernels"),
                .product(name: "SparseVideoGen", package: "SparseKernels"),
            ],
            swiftSettings: language),
    ],
    swiftLanguageModes: [.v6]
)
