// swift-tools-version: 6.2
import PackageDescription

// MARK: - Instruction sets

// One set of kernel sources is compiled once per level. The flags below apply to those targets only, so a client needs none.
// They are x86-64 flags: on other hosts the portable level is the only one, and the package has no unsafe flags at all.
#if arch(x86_64)
    let vectorLevels = [("AVX2", "x86-64-v3"), ("AVX512", "x86-64-v4")]
    let levelDefine: [SwiftSetting] = [.define("SPARSEKERNELS_X86_LEVELS")]
    let portableFlags: [SwiftSetting] = [.unsafeFlags(["-Ounchecked"])]
    // Most of the time of tests goes to oracles. They are optimised in debug builds too, with all checks of the language.
    let oracleFlags: [SwiftSetting] = [.unsafeFlags(["-O"], .when(configuration: .debug))]
#else
    let vectorLevels: [(String, String)] = []
    let levelDefine: [SwiftSetting] = []
    let portableFlags: [SwiftSetting] = []
    let oracleFlags: [SwiftSetting] = []
#endif

// x86-64-v4 has no VNNI, which every core of interest with AVX-512 has: the level means F, BW, DQ, VL and VNNI.
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

// Only who builds the documentation needs the plug-in; a client of the kernels resolves nothing.
let documentation: [Package.Dependency] =
    Context.environment["SPARSEKERNELS_DOCS"] == nil
    ? [] : [.package(url: "https://github.com/swiftlang/swift-docc-plugin", from: "1.5.0")]

// MARK: - Façades

// One module per paper over the operators of SparseKernels, which it re-exports: its words, defaults and file formats, and the rules
// that no other paper uses. What needs a kernel is an operator of SparseKernels, whoever uses it.
let facades = [
    "XAttention", "MInference", "SpargeAttention", "DuoAttention", "Quest", "LServe", "Twilight", "SVDQuant", "QServe",
]

// MARK: - Package

let package = Package(
    name: "SparseKernels",
    platforms: [.macOS("26.0"), .iOS("26.0"), .tvOS("26.0"), .watchOS("26.0"), .visionOS("26.0")],
    products: [
        .library(name: "SparseKernels", targets: ["SparseKernels"]),
        .library(name: "SparseKernelsReference", targets: ["SparseKernelsReference"]),
        .library(name: "GoldenReplay", targets: ["GoldenReplay"]),
    ] + facades.map { .library(name: $0, targets: [$0]) },
    // None is on by default: the toolchain alone builds, tests and serves a client. OpenBLAS is what benchmarks compare with.
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
        .target(
            name: "SparseKernelsReference", dependencies: ["SparseKernels"], swiftSettings: language + views + oracleFlags),
        .target(
            name: "GoldenReplay",
            dependencies: ["SparseKernels", "SparseKernelsReference"] + facades.map { .byName(name: $0) },
            swiftSettings: language + views + oracleFlags),
        .target(name: "KernelInterface", swiftSettings: language),
        // What several test targets share.
        .target(
            name: "TestSupport", dependencies: ["SparseKernels"], path: "Tests/TestSupport",
            swiftSettings: language + views + oracleFlags),
        // Damaged files and what must be true of those that are accepted. The fuzzing program compiles the same folder.
        .target(
            name: "HostileFiles", dependencies: ["SparseKernels", "SparseKernelsReference", "QServe", "SVDQuant"],
            path: "Fuzz/Sources/HostileFiles", swiftSettings: language + views),
        .testTarget(
            name: "SparseKernelsTests",
            dependencies: ["SparseKernels", "SparseKernelsReference", "KernelInterface", "TestSupport", "HostileFiles"],
            swiftSettings: language + views),
        .testTarget(
            name: "GoldenReplayTests", dependencies: ["GoldenReplay", "SparseKernels", "TestSupport"],
            swiftSettings: language + views),
        .testTarget(
            name: "FacadeTests",
            dependencies: ["SparseKernels", "SparseKernelsReference", "TestSupport", "HostileFiles"]
                + facades.map { .byName(name: $0) },
            swiftSettings: language + views),
        // Built as a client builds: no settings of this package, no @testable.
        .testTarget(
            name: "PublicAPITests", dependencies: ["SparseKernels"] + facades.map { .byName(name: $0) }),
        .systemLibrary(name: "CIntrinsics"),
        .systemLibrary(
            name: "COpenBLAS", pkgConfig: "openblas",
            providers: [.apt(["libopenblas-dev", "liblapacke-dev"]), .brew(["openblas"])]),
    ]
        + facades.map { .target(name: $0, dependencies: ["SparseKernels"], swiftSettings: language + views) }
        + level("Portable", portableFlags)
        + vectorLevels.flatMap { level($0.0, levelFlags($0.1)) }
)
