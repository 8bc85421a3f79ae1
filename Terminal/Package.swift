// swift-tools-version: 6.2
import PackageDescription

// What people see of a long computation: progress, tables, numbers, charts. A package of its own, because benchmarks, tools and examples
// all show such things, and because it knows no kernel: it builds and tests in seconds, and none of them has to depend on another.

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
