// swift-tools-version: 6.2
import PackageDescription

// Several machines, or several processes of one: messages, sequence parallelism, sharded caches. It is a separate package, so that
// clients of the kernels never look for MPI. Without the trait `MPI` ranks are threads of one process and nothing is installed.

let language: [SwiftSetting] = [
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .enableUpcomingFeature("MemberImportVisibility"),
]
let views: [SwiftSetting] = [.enableExperimentalFeature("Lifetimes")]

let package = Package(
    name: "SparseKernelsDistributed",
    platforms: [.macOS("26.0")],
    products: [
        .library(name: "Communication", targets: ["Communication"]),
        .library(name: "MPICommunication", targets: ["MPICommunication"]),
        .library(name: "SequenceParallel", targets: ["SequenceParallel"]),
        .library(name: "SequenceParallelReplay", targets: ["SequenceParallelReplay"]),
        .executable(name: "sparse-ranks", targets: ["SparseRanksTool"]),
    ],
    traits: [
        .trait(name: "MPI", description: "Ranks as processes over the system's MPI (Open MPI or MPICH)."),
        .trait(name: "OpenBLAS", description: "Passed on to SparseKernels."),
    ],
    dependencies: [
        .package(
            name: "SparseKernels", path: "..",
            traits: [.trait(name: "OpenBLAS", condition: .when(traits: ["OpenBLAS"]))]),
        // For tables and charts of the command.
        .package(name: "SparseKernelsTerminal", path: "../Terminal"),
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
    ],
    targets: [
        // Ranks, messages, and ranks as threads.
        .target(
            name: "Communication", dependencies: [.product(name: "SparseKernels", package: "SparseKernels")],
            swiftSettings: language + views),
        // Ranks as processes. Empty without the trait.
        .target(
            name: "MPICommunication",
            dependencies: [
                "Communication", .product(name: "SparseKernels", package: "SparseKernels"),
                .target(name: "CMPI", condition: .when(traits: ["MPI"])),
            ],
            swiftSettings: language + views),
        .systemLibrary(
            name: "CMPI", pkgConfig: "mpi-c", providers: [.apt(["libopenmpi-dev", "openmpi-bin"]), .brew(["open-mpi"])]),
        // LongVILA: sharding, attention over a grid of ranks, caches whose pages live on several ranks, a model of costs.
        .target(
            name: "SequenceParallel",
            dependencies: [
                "Communication", .product(name: "SparseKernels", package: "SparseKernels"),
                .product(name: "SparseKernelsTraining", package: "SparseKernels"),
            ],
            swiftSettings: language + views),
        // Recorded calls of LongVILA's code.
        .target(
            name: "SequenceParallelReplay",
            dependencies: [
                "Communication", "SequenceParallel", .product(name: "SparseKernels", package: "SparseKernels"),
                .product(name: "SparseKernelsReference", package: "SparseKernels"),
                .product(name: "GoldenReplay", package: "SparseKernels"),
            ],
            swiftSettings: language + views),
        .executableTarget(
            name: "SparseRanksTool",
            dependencies: [
                "Communication", "MPICommunication", "SequenceParallel",
                .product(name: "SparseKernels", package: "SparseKernels"),
                .product(name: "SparseKernelsReference", package: "SparseKernels"),
                .product(name: "Terminal", package: "SparseKernelsTerminal"),
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            path: "Sources/sparse-ranks", swiftSettings: language + views),
        .testTarget(
            name: "CommunicationTests",
            dependencies: ["Communication", .product(name: "SparseKernels", package: "SparseKernels")],
            swiftSettings: language + views),
        .testTarget(
            name: "SequenceParallelTests",
            dependencies: [
                "Communication", "MPICommunication", "SequenceParallel", "SequenceParallelReplay",
                .product(name: "SparseKernels", package: "SparseKernels"),
                .product(name: "SparseKernelsTraining", package: "SparseKernels"),
                .product(name: "SparseKernelsReference", package: "SparseKernels"),
                .product(name: "GoldenReplay", package: "SparseKernels"),
            ],
            swiftSettings: language + views),
        // The command, and ranks that die.
        .testTarget(
            name: "RanksTests",
            dependencies: [
                "Communication", "SequenceParallel",
                // For its options, and so that it is built.
                "SparseRanksTool",
                .product(name: "SparseKernels", package: "SparseKernels"),
                .product(name: "Terminal", package: "SparseKernelsTerminal"),
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            swiftSettings: language + views),
    ],
    swiftLanguageModes: [.v6]
)
