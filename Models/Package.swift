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
    products: [.library(name: "SparseKernelsModels", targets: ["SparseKernelsModels"])],
    traits: [
        .trait(name: "OpenBLAS", description: "Passed on to SparseKernels.")
    ],
    dependencies: [
        .package(
            name: "SparseKernels", path: "..",
            traits: [.trait(name: "OpenBLAS", condition: .when(traits: ["OpenBLAS"]))])
    ],
    targets: [
        .target(
            name: "SparseKernelsModels",
            dependencies: [
                .product(name: "SparseKernels", package: "SparseKernels"),
                .product(name: "SparseKernelsReference", package: "SparseKernels"),
                .product(name: "FastDLLM", package: "SparseKernels"),
                .product(name: "LServe", package: "SparseKernels"),
                .product(name: "MInference", package: "SparseKernels"),
                .product(name: "NemotronH", package: "SparseKernels"),
                .product(name: "QServe", package: "SparseKernels"),
                .product(name: "Quest", package: "SparseKernels"),
                .product(name: "ReasoningBranches", package: "SparseKernels"),
                .product(name: "SVDQuant", package: "SparseKernels"),
                .product(name: "SpargeAttention", package: "SparseKernels"),
                .product(name: "SparseVideoGen", package: "SparseKernels"),
                .product(name: "Twilight", package: "SparseKernels"),
                .product(name: "XAttention", package: "SparseKernels"),
            ],
            swiftSettings: language),
        .testTarget(
            name: "SparseKernelsModelsTests",
            dependencies: [
                "SparseKernelsModels",
                .product(name: "SparseKernels", package: "SparseKernels"),
                .product(name: "FastDLLM", package: "SparseKernels"),
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
