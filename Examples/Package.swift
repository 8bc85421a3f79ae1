// swift-tools-version: 6.2
import PackageDescription

// Example programs. The manifest of a client looks like this one, with a URL and a version instead of the path.

let package = Package(
    name: "SparseKernelsExamples",
    platforms: [.macOS("26.0")],
    dependencies: [
        .package(name: "SparseKernels", path: ".."),
        // Only code-length needs it. Nested packages have no URL, so a client copies the parts that it needs.
        .package(name: "SparseKernelsModels", path: "../Models"),
        .package(name: "SparseKernelsTerminal", path: "../Terminal"),
    ],
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
        .executableTarget(
            name: "code-length",
            dependencies: [
                .product(name: "SparseKernels", package: "SparseKernels"),
                .product(name: "SparseKernelsModels", package: "SparseKernelsModels"),
                .product(name: "Terminal", package: "SparseKernelsTerminal"),
            ]),
    ]
)
