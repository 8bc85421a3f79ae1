// swift-tools-version: 6.2
import PackageDescription

let package = Package(
    name: "SparseKernelsFuzz",
    platforms: [.macOS("26.0")],
    traits: [
        .trait(name: "OpenBLAS", description: "Nothing here needs it; passed on, to share a build with what does.")
    ],
    dependencies: [
        .package(
            name: "SparseKernels", path: "..",
            traits: [.trait(name: "OpenBLAS", condition: .when(traits: ["OpenBLAS"]))])
    ],
    targets: [
        .executableTarget(
            name: "safetensors-fuzz",
            dependencies: [
                .product(name: "QServe", package: "SparseKernels"),
                .product(name: "SVDQuant", package: "SparseKernels"),
                .product(name: "SparseKernels", package: "SparseKernels"),
                .product(name: "SparseKernelsReference", package: "SparseKernels"),
            ],
            // `Sources` has two folders: the program, and code that the package's tests share, where it is a target.
            path: "Sources",
            swiftSettings: [
                .enableUpcomingFeature("ExistentialAny"),
                .enableUpcomingFeature("InternalImportsByDefault"),
                .enableUpcomingFeature("MemberImportVisibility"),
                .enableExperimentalFeature("Lifetimes"),
            ])
    ]
)
