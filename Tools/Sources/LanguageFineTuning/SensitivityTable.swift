public import SparseKernelsFineTuning
import SparseLoRA
import Terminal

/// The losses of blocks that leave channels out, as a table for people.
public struct SensitivityTable {
    public let lines: [String]

    /// A row for each part of each block, with the change of the loss in percent at each sparsity, and what is proposed.
    public init(_ proposal: SparsityProposal) {
        let sparsities = proposal.analysis.sparsities
        let table = TextTable(
            [.init("Block", width: 5), .init("Part", width: 9, alignment: .left)]
                + sparsities.map { .init("\(Format.number(100 * $0)) %", "± %", width: 7) } + [.init("Proposed", "%", width: 8)]
        )
        var lines = table.header
        let dense = proposal.curves.denseLoss
        for (block, parts) in proposal.curves.losses.enumerated() {
            let chosen = proposal.configuration.layers[block]
            for (part, losses) in zip(SensitivityAnalysis.Part.allCases, parts) where !losses.isEmpty {
                let sparsity = part == .mlp ? chosen.mlp : chosen.attention
                lines.append(
                    table.line(
                        ["\(block)", part == .mlp ? "MLP" : "attention"] + losses.map { Self.change($0, from: dense) }
                            + [sparsity.map { Format.number(100 * $0) } ?? ""]))
            }
        }
        lines.append(
            "\(Format.fixed(dense, 4)) nats per token with all channels; as proposed, with "
                + "\(Format.number(100 * proposal.remainingShare)) % of the multiply-adds for the context, "
                + "\(Format.fixed(proposal.loss, 4)) (\(Self.change(proposal.loss, from: dense)) %)")
        self.lines = lines
    }

    private static func change(_ loss: Double, from dense: Double) -> String {
        let percent = 100 * (loss / dense - 1)
        return (percent < 0 ? "−" : "+") + Format.fixed(abs(percent), 2)
    }
}
