import BenchmarkReport

/// Visual tokens: towers in 8 bits, projectors, selected patches of large pictures, videos before and after compression.
///
/// A further subject is a file in this folder with an extension that makes its groups, and a line in `section()`.
struct VisionCases: CaseFamily {
    let run: RunContext

    func section() -> Section {
        Section(
            kind: .vision,
            groups: w8a8Groups + towerGroups + pictureGroups + projectorGroups() + prefillGroups() + ps3Groups()
                + tokenGroups(),
            baselines: [
                VisionBaseline.float, VisionBaseline.unfused, VisionBaseline.uncompressed, VisionBaseline.prefill,
                VisionBaseline.steps, "GEMM", "tiles", "in passes", "at once", "half the side",
            ])
    }
}

enum VisionBaseline {
    static let float = "f32"
    static let unfused = "unfused"
    static let uncompressed = "uncompressed"
}
