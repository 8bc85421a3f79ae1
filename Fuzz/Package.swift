// swift-tools-version: 6.2
import PackageDescription

let package = Package(
    name: "SparseKernelsFuzz",
    platforms: [.macOS("26.0")],
    dependencies: [.package(name: "SparseKernels", path: "..")],
    targets: [
        .executableTarget(
            name: "safetensors-fuzz",
            dependencies: [
                .product(name: "QServe", package: "SparseKernels"),
                .product(name: "SVDQuant", package: "SparseKernels"),
                .product(name: "SparseKernels", package: "SparseKernels"),
                .product(name: "SparseKernelsReference", package: "SparseKernels"),
            ],
            path: "Sources/SafetensorsFuzz",
            swiftSettings: [
                .enableUpcomingFeature("ExistentialAny"),
                .enableUpcomingFeature("InternalImportsByDefault"),
                .enableUpcomingFeature("MemberImportVisibility"),
                .enableExperimentalFeature("Lifetimes"),
            ])
    ]
)
