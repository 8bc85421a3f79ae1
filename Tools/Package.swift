// swift-tools-version: 6.2
import PackageDescription

// A separate package, so that clients of the kernels never download the dependencies of the command line.

let language: [SwiftSetting] = [
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .enableUpcomingFeature("MemberImportVisibility"),
]

let package = Package(
    name: "SparseKernelsTools",
    platforms: [.macOS("26.0")],
    products: [
        .executable(name: "sparsekernels", targets: ["SparseKernelsTool"]),
        .executable(name: "sparse-video", targets: ["SparseVideoTool"]),
        .executable(name: "sparse-lm", targets: ["SparseLMTool"]),
        .executable(name: "sparse-vision", targets: ["SparseVisionTool"]),
    ],
    traits: [
        .trait(name: "MPI", description: "sparse-lm over several processes; passed on to SparseKernelsDistributed."),
        .trait(name: "OpenBLAS", description: "LAPACKE for full decompositions; passed on to SparseKernels."),
    ],
    dependencies: [
        .package(
            name: "SparseKernels", path: "..",
            traits: [.trait(name: "OpenBLAS", condition: .when(traits: ["OpenBLAS"]))]),
        // For the model that calibration data come from.
        .package(
            name: "SparseKernelsModels", path: "../Models",
            traits: [.trait(name: "OpenBLAS", condition: .when(traits: ["OpenBLAS"]))]),
        // For models over several ranks.
        .package(
            name: "SparseKernelsDistributed", path: "../Distributed",
            traits: [
                .trait(name: "MPI", condition: .when(traits: ["MPI"])),
                .trait(name: "OpenBLAS", condition: .when(traits: ["OpenBLAS"])),
            ]),
        // For the progress line, tables and number formats.
        .package(name: "SparseKernelsTerminal", path: "../Terminal"),
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
    ],
    targets: [
        // It has another name than the product, because SparseKernels is taken on file systems that ignore case.
        .executableTarget(
            name: "SparseKernelsTool",
            dependencies: [
                "ModelQuantization",
                .product(name: "Terminal", package: "SparseKernelsTerminal"),
                .product(name: "SparseKernelsModels", package: "SparseKernelsModels"),
                .product(name: "SparseKernels", package: "SparseKernels"),
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            swiftSettings: language),
        // A program of its own: it makes videos and not files of models, and shares no option with the other one.
        .executableTarget(
            name: "SparseVideoTool",
            dependencies: [
                "ModelQuantization",
                "VideoGeneration",
                .product(name: "Terminal", package: "SparseKernelsTerminal"),
                .product(name: "SparseKernelsModels", package: "SparseKernelsModels"),
                .product(name: "SparseKernels", package: "SparseKernels"),
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            swiftSettings: language),
        .executableTarget(
            name: "SparseLMTool",
            dependencies: [
                "LanguageFineTuning",
                "LanguageMeasuring",
                "ModelQuantization",
                .product(name: "Communication", package: "SparseKernelsDistributed"),
                .product(name: "MPICommunication", package: "SparseKernelsDistributed"),
                .product(name: "Terminal", package: "SparseKernelsTerminal"),
                .product(name: "SparseKernelsModels", package: "SparseKernelsModels"),
                .product(name: "SparseKernelsFineTuning", package: "SparseKernelsModels"),
                .product(name: "ReasoningBranches", package: "SparseKernels"),
                .product(name: "FastDLLM", package: "SparseKernels"),
                .product(name: "CATS", package: "SparseKernels"),
                .product(name: "PolarSparsity", package: "SparseKernels"),
                .product(name: "SparseLoRA", package: "SparseKernels"),
                .product(name: "SparseKernels", package: "SparseKernels"),
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            swiftSettings: language),
        .executableTarget(
            name: "SparseVisionTool",
            dependencies: [
                "PictureSelection",
                .product(name: "Terminal", package: "SparseKernelsTerminal"),
                .product(name: "SparseKernelsModels", package: "SparseKernelsModels"),
                .product(name: "PS3", package: "SparseKernels"),
                .product(name: "SparseKernels", package: "SparseKernels"),
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            swiftSettings: language),
        // Pictures with the patches that a model selects.
        .target(
            name: "PictureSelection",
            dependencies: [
                .product(name: "Terminal", package: "SparseKernelsTerminal"),
                .product(name: "SparseKernelsModels", package: "SparseKernelsModels"),
                .product(name: "PS3", package: "SparseKernels"),
                .product(name: "SparseKernels", package: "SparseKernels"),
            ],
            swiftSettings: language),
        .target(
            name: "LanguageMeasuring",
            dependencies: [
                .product(name: "Communication", package: "SparseKernelsDistributed"),
                .product(name: "DuoAttention", package: "SparseKernels"),
                .product(name: "Terminal", package: "SparseKernelsTerminal"),
                .product(name: "SparseKernelsModels", package: "SparseKernelsModels"),
                .product(name: "ReasoningBranches", package: "SparseKernels"),
                .product(name: "FastDLLM", package: "SparseKernels"),
                .product(name: "CATS", package: "SparseKernels"),
                .product(name: "PolarSparsity", package: "SparseKernels"),
                .product(name: "SparseKernels", package: "SparseKernels"),
            ],
            swiftSettings: language),
        .target(
            name: "LanguageFineTuning",
            dependencies: [
                .product(name: "Terminal", package: "SparseKernelsTerminal"),
                .product(name: "SparseKernelsFineTuning", package: "SparseKernelsModels"),
                .product(name: "SparseLoRA", package: "SparseKernels"),
                .product(name: "SparseKernels", package: "SparseKernels"),
            ],
            swiftSettings: language),
        .target(
            name: "VideoGeneration",
            dependencies: [
                .product(name: "Terminal", package: "SparseKernelsTerminal"),
                .product(name: "SparseKernelsModels", package: "SparseKernelsModels"),
                .product(name: "SparseKernels", package: "SparseKernels"),
                .product(name: "SparseVideoGen", package: "SparseKernels"),
            ],
            swiftSettings: language),
        // The work of the commands, without arguments and terminals.
        .target(
            name: "ModelQuantization",
            dependencies: [
                .product(name: "Terminal", package: "SparseKernelsTerminal"),
                .product(name: "SparseKernels", package: "SparseKernels"),
                .product(name: "SparseKernelsReference", package: "SparseKernels"),
                .product(name: "SVDQuant", package: "SparseKernels"),
            ],
            swiftSettings: language),
        .testTarget(
            name: "LanguageMeasuringTests",
            dependencies: [
                "LanguageFineTuning",
                "LanguageMeasuring",
                // For its options.
                "SparseLMTool",
                .product(name: "Communication", package: "SparseKernelsDistributed"),
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
                .product(name: "Terminal", package: "SparseKernelsTerminal"),
                .product(name: "SparseKernelsModels", package: "SparseKernelsModels"),
                .product(name: "SparseKernelsFineTuning", package: "SparseKernelsModels"),
                .product(name: "ReasoningBranches", package: "SparseKernels"),
                .product(name: "FastDLLM", package: "SparseKernels"),
                .product(name: "CATS", package: "SparseKernels"),
                .product(name: "PolarSparsity", package: "SparseKernels"),
                .product(name: "SparseLoRA", package: "SparseKernels"),
                .product(name: "SparseKernels", package: "SparseKernels"),
                .product(name: "SparseKernelsReference", package: "SparseKernels"),
            ],
            swiftSettings: language),
        .testTarget(
            name: "PictureSelectionTests",
            dependencies: [
                "PictureSelection",
                // For its options.
                "SparseVisionTool",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
                .product(name: "SparseKernelsModels", package: "SparseKernelsModels"),
                .product(name: "PS3", package: "SparseKernels"),
                .product(name: "SparseKernels", package: "SparseKernels"),
            ],
            swiftSettings: language),
        .testTarget(
            name: "VideoGenerationTests",
            dependencies: [
                "VideoGeneration",
                .product(name: "Terminal", package: "SparseKernelsTerminal"),
                .product(name: "SparseKernelsModels", package: "SparseKernelsModels"),
                .product(name: "SparseKernels", package: "SparseKernels"),
                .product(name: "SparseKernelsReference", package: "SparseKernels"),
            ],
            swiftSettings: language),
        .testTarget(
            name: "ModelQuantizationTests",
            dependencies: [
                "ModelQuantization",
                .product(name: "SparseKernels", package: "SparseKernels"),
                .product(name: "SparseKernelsReference", package: "SparseKernels"),
                .product(name: "SVDQuant", package: "SparseKernels"),
            ],
            swiftSettings: language),
    ],
    swiftLanguageModes: [.v6]
)
