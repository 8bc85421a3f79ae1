import BenchmarkReport

/// Contextual sparsity: layers of picked channels, experts, gradients, and what chooses channels.
///
/// A further subject is a file in this folder with an extension that makes its groups, and a line in `section()`.
struct ContextualCases: CaseFamily {
    let run: RunContext

    func section() -> Section {
        Section(
            kind: .contextual,
            groups: sparseLinearGroups() + sparseLoRAGroups() + catsGroups() + polarGroups() + expertGroups
                + trainingGroups() + attentionGradientGroups(),
            baselines: [ContextualBaseline.dense, Self.attentionForward])
    }
}

enum ContextualBaseline {
    static let dense = "dense"
}
