// swift-tools-version: 6.2
import PackageDescription

// MARK: - Instruction sets

// One set of kernel sources is compiled once per level. The flags below apply to those targets only, so a client needs none.
// They are x86-64 flags: other hosts have the portable level only, and the package then has no unsafe flags.
#if arch(x86_64)
    let vectorLevels = [("AVX2", "x86-64-v3"), ("AVX512", "x86-64-v4")]
    let levelDefine: [SwiftSetting] = [.define("SPARSEKERNELS_X86_LEVELS")]
    let portableFlags: [SwiftSetting] = [.unsafeFlags(["-Ounchecked"])]
    // Tests spend most of their time in oracles. These are also optimised in debug builds, with all checks of the language.
    let oracleFlags: [SwiftSetting] = [.unsafeFlags(["-O"], .when(configuration: .debug))]
#else
    let vectorLevels: [(String, String)] = []
    let levelDefine: [SwiftSetting] = []
    let portableFlags: [SwiftSetting] = []
    let oracleFlags: [SwiftSetting] = []
#endif

// This level means F, BW, DQ, VL and VNNI. x86-64-v4 lacks VNNI, which every relevant core with AVX-512 has.
func levelFlags(_ march: String) -> [SwiftSetting] {
    var flags = ["-Ounchecked", "-Xcc", "-march=\(march)"]
    if march == "x86-64-v4" { flags += ["-Xcc", "-mavx512vnni"] }
    return [.unsafeFlags(flags)]
}

let language: [SwiftSetting] = [
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .enableUpcomingFeature("MemberImportVisibility"),
]
let views: [SwiftSetting] = [.enableExperimentalFeature("Lifetimes")]

func level(_ name: String, _ settings: [SwiftSetting]) -> [Target] {
    [
        .target(name: "Vector\(name)", dependencies: ["CIntrinsics"], swiftSettings: language + settings),
        .target(
            name: "Kernels\(name)", dependencies: ["KernelInterface", .byName(name: "Vector\(name)")],
            swiftSettings: language + settings),
    ]
}

// Only builds of the documentation need the plug-in. Clients of the kernels have nothing to resolve.
let documentation: [Package.Dependency] =
    Context.environment["SPARSEKERNELS_DOCS"] == nil
    ? [] : [.package(url: "https://github.com/swiftlang/swift-docc-plugin", from: "1.5.0")]

// MARK: - Façades

// One module per paper over the operators of SparseKernels, which it re-exports. It has the paper's terms, defaults and file
// formats, and rules that no other paper uses. Code that needs a kernel belongs to SparseKernels.
let facades = [
    "XAttention", "MInference", "SpargeAttention", "DuoAttention", "Quest", "LServe", "Twilight", "SVDQuant", "QServe",
    "SparseVideoGen",
    "PAROAttention", "DraftAttention",
    "SLA", "NeighborhoodAttention",
    "FastDLLM",
    "ReasoningBranches",
    "NemotronH",
    "STORM",
    "SparseLoRA",
    "CATS",
    "PolarSparsity",
    "NVILA",
    "PS3",
    "CoTVLA",
    "PyramidDrop",
    "FrameFusion",
]

/// What a façade needs beside SparseKernels.
let facadeDependencies: [String: [Target.Dependency]] = ["SparseLoRA": ["SparseKernelsTraining"]]

// MARK: - Package

let package = Package(
    name: "SparseKernels",
    platforms: [.macOS("26.0"), .iOS("26.0"), .tvOS("26.0"), .watchOS("26.0"), .visionOS("26.0")],
    products: [
        .library(name: "SparseKernels", targets: ["SparseKernels"]),
        .library(name: "SparseKernelsReference", targets: ["SparseKernelsReference"]),
        .library(name: "GoldenReplay", targets: ["GoldenReplay"]),
        .library(name: "SparseKernelsTraining", targets: ["SparseKernelsTraining"]),
    ] + facades.map { .library(name: $0, targets: [$0]) },
    // No trait is on by default: the toolchain is enough to build, test and use the package. Benchmarks compare with OpenBLAS.
    traits: [
        .trait(name: "OpenBLAS", description: "Dense algebra and SVD through the system's OpenBLAS and LAPACKE.")
    ],
    dependencies: documentation,
    targets: [
        .target(
            name: "SparseKernels",
            dependencies: [
                "CIntrinsics", "KernelInterface", "KernelsPortable",
                .target(name: "COpenBLAS", condition: .when(platforms: [.linux], traits: ["OpenBLAS"])),
            ] + vectorLevels.map { .byName(name: "Kernels\($0.0)") },
            swiftSettings: language + views + levelDefine),
        // Gradients and an optimiser, for what fine-tuning of adapters needs. Inference does without.
        .target(
            name: "SparseKernelsTraining", dependencies: ["SparseKernels", "KernelInterface"],
            swiftSettings: language + views),
        .target(
            name: "SparseKernelsReference", dependencies: ["SparseKernels"], swiftSettings: language + views + oracleFlags),
        .target(
            name: "GoldenReplay",
            dependencies: ["SparseKernels", "SparseKernelsReference", "SparseKernelsTraining"]
                + facades.map { .byName(name: $0) },
            swiftSettings: language + views + oracleFlags),
        .target(name: "KernelInterface", swiftSettings: language),
        // Code that several test targets share.
        .target(
            name: "TestSupport", dependencies: ["SparseKernels"], path: "Tests/TestSupport",
            swiftSettings: language + views + oracleFlags),
        // Damaged files, and checks of those that are accepted. The fuzzing program compiles the same folder.
        .target(
            name: "HostileFiles", dependencies: ["SparseKernels", "SparseKernelsReference", "QServe", "SVDQuant"],
            path: "Fuzz/Sources/HostileFiles", swiftSettings: language + views),
        .testTarget(
            name: "SparseKernelsTests",
            dependencies: ["SparseKernels", "SparseKernelsReference", "KernelInterface", "TestSupport", "HostileFiles"],
            swiftSettings: language + views),
        .testTarget(
            name: "SparseKernelsTrainingTests",
            dependencies: [
                "SparseKernelsTraining", "SparseKernels", "SparseKernelsReference", "KernelInterface", "TestSupport",
            ],
            swiftSettings: language + views),
        .testTarget(
            name: "GoldenReplayTests", dependencies: ["GoldenReplay", "SparseKernels", "TestSupport"],
            swiftSettings: language + views),
        .testTarget(
            name: "FacadeTests",
            dependencies: [
                "SparseKernels", "SparseKernelsReference", "SparseKernelsTraining", "TestSupport", "HostileFiles",
            ]
                + facades.map { .byName(name: $0) },
            swiftSettings: language + views),
        // Built as in a client: without settings of this package, without @testable.
        .testTarget(
            name: "PublicAPITests",
            dependencies: ["SparseKernels", "SparseKernelsReference", "SparseKernelsTraining"]
                + facades.map { .byName(name: $0) }),
        .systemLibrary(name: "CIntrinsics"),
        .systemLibrary(
            name: "COpenBLAS", pkgConfig: "openblas",
            providers: [.apt(["libopenblas-dev", "liblapacke-dev"]), .brew(["openblas"])]),
    ]
        + facades.map {
            .target(
                name: $0, dependencies: ["SparseKernels"] + (facadeDependencies[$0] ?? []), swiftSettings: language + views)
        }
        + level("Portable", portableFlags)
        + vectorLevels.flatMap { level($0.0, levelFlags($0.1)) }
)
