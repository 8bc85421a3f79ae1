// swift-tools-version: 6.2
import PackageDescription

// Programs to copy from. A client's manifest looks like this one, with a URL and a version in place of the path.

let package = Package(
    name: "SparseKernelsExamples",
    platforms: [.macOS("26.0")],
    dependencies: [.package(name: "SparseKernels", path: "..")],
    targets: [
        .executableTarget(
            name: "dense-attention",
            dependencies: [
                .product(name: "SparseKernels", package: "SparseKernels"),
                .product(name: "SparseKernelsReference", package: "SparseKernels"),
            ]),
        .executableTarget(
            name: "block-sparse-attention",
            dependencies: [
                .product(name: "SparseKernels", package: "SparseKernels"),
                .product(name: "SparseKernelsReference", package: "SparseKernels"),
            ]),
        .executableTarget(
            name: "capture-attention", dependencies: [.product(name: "SparseKernels", package: "SparseKernels")]),
    ]
)
