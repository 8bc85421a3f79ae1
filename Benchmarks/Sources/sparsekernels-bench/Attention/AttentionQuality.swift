import BenchmarkReport
import SparseKernels

/// The accuracy of a sparse pattern compared with dense attention, head by head.
struct AttentionQuality {
    struct Head {
        var density: Double
        /// The mean over the query rows of the softmax mass that is kept.
        var recall: Double
        /// The smallest density at which the best blocks of the head have this recall.
        var oracleDensity: Double
        /// ‖output − dense output‖ / ‖dense output‖.
        var outputError: Double
    }

    let heads: [Head]
    /// Means over the heads, which have equally many rows and blocks. The error is from the norms over all heads.
    let all: Head

    /// - Parameters:
    ///   - masses: the attention mass of every block, from antidiagonal scoring with a stride of 1.
    ///   - density: the kept fraction of the visible pairs or blocks of a head.
    init(
        dense: AttentionState, sparse: AttentionState, masses: BlockScores, density: (Int) throws -> Double
    ) throws {
        let comparison = try AttentionComparison(sparse, with: dense)
        let heads = try comparison.heads.enumerated().map { head, compared in
            Head(
                density: try density(head), recall: compared.recall,
                oracleDensity: masses.massCurve(head: head).density(reaching: compared.recall),
                outputError: compared.error)
        }
        self.heads = heads
        func mean(_ value: KeyPath<Head, Double>) -> Double {
            heads.map { $0[keyPath: value] }.reduce(0, +) / Double(heads.count)
        }
        all = Head(
            density: mean(\.density), recall: comparison.recall, oracleDensity: mean(\.oracleDensity),
            outputError: comparison.error)
    }
}

extension AttentionQuality {
    /// The values over all heads.
    var metrics: [Metric: Double] {
        [.recall: all.recall, .oracleDensity: all.oracleDensity, .outputError: all.outputError]
    }
}

extension BlockScores {
    /// The sorted masses of the reachable blocks of a head.
    func massCurve(head: Int) -> MassCurve {
        MassCurve(
            (0..<grid.blockRows).lazy.flatMap { row in
                grid.reachableColumns(ofRow: row).lazy.map { self[head, row, $0] }
            })
    }

    /// The fraction of the mass that a mask keeps, over all heads. This is the mask's recall if the masses have a stride of 1.
    func keptPart(of mask: BlockMask) -> Double {
        var (kept, total) = (0.0, 0.0)
        for head in 0..<heads {
            for row in 0..<grid.blockRows {
                for column in mask.columns(head: head, row: row) { kept += Double(self[head, row, Int(column)]) }
                for column in grid.reachableColumns(ofRow: row) { total += Double(self[head, row, column]) }
            }
        }
        return kept / total
    }
}
