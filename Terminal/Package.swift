// swift-tools-version: 6.2
import PackageDescription

// Output for people during long computations: progress, tables, numbers, charts. It is a separate package, so that benchmarks,
// tools and examples share it without depending on each other. It uses no kernels, so it builds and tests in seconds.

let language: [SwiftSetting] = [
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .enableUpcomingFeature("MemberImportVisibility"),
]

let package = Package(
    name: "SparseKernelsTerminal",
    platforms: [.macOS("26.0")],
    products: [.library(name: "Terminal", targets: ["Terminal"])],
    targets: [
        .target(name: "Terminal", swiftSettings: language),
        .testTarget(name: "TerminalTests", dependencies: ["Terminal"], swiftSettings: language),
    ],
    swiftLanguageModes: [.v6]
)
