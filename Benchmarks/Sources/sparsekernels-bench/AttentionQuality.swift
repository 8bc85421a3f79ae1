import BenchmarkReport
import Foundation
import SparseKernels

/// What a sparse pattern keeps of dense attention, head by head.
struct AttentionQuality {
    struct Head {
        var density: Double
        /// Mean over the query rows of the softmax mass that is kept.
        var recall: Double
        /// The least density at which the best blocks of the head have this recall.
        var oracleDensity: Double
        /// ‖output − dense output‖ / ‖dense output‖.
        var outputError: Double
    }

    let heads: [Head]
    /// Means over the heads, which have equally many rows and blocks; the error from the norms over all of them.
    let all: Head

    /// - Parameters:
    ///   - masses: attention mass of every block, from antidiagonal scoring with a stride of 1.
    ///   - density: kept part of the visible pairs or blocks of a head.
    init(
        dense: AttentionState, sparse: AttentionState, masses: BlockScores, density: (Int) throws -> Double
    ) rethrows {
        let (count, tokens) = (dense.output.shape[0], dense.output.shape[1])
        let channels = dense.output.shape[2]
        var heads: [Head] = []
        var (difference, norm) = (0.0, 0.0)
        for head in 0..<count {
            // e^(LSE − dense LSE) is the part of the row's sum of exponentials that the kept keys have: exact for any pattern.
            let recall = (head * tokens..<(head + 1) * tokens).reduce(0.0) {
                $0 + exp(Double(sparse.logSumExp[flat: $1]) - Double(dense.logSumExp[flat: $1]))
            }
            var (headDifference, headNorm) = (0.0, 0.0)
            for index in head * tokens * channels..<(head + 1) * tokens * channels {
                let exact = Double(dense.output[flat: index])
                let deviation = Double(sparse.output[flat: index]) - exact
                headDifference += deviation * deviation
                headNorm += exact * exact
            }
            difference += headDifference
            norm += headNorm
            let mean = recall / Double(tokens)
            heads.append(
                Head(
                    density: try density(head), recall: mean,
                    oracleDensity: masses.massCurve(head: head).density(reaching: mean),
                    outputError: (headDifference / headNorm).squareRoot()))
        }
        self.heads = heads
        func mean(_ value: KeyPath<Head, Double>) -> Double { heads.map { $0[keyPath: value] }.reduce(0, +) / Double(count) }
        all = Head(
            density: mean(\.density), recall: mean(\.recall), oracleDensity: mean(\.oracleDensity),
            outputError: (difference / norm).squareRoot())
    }
}

extension SelectionQuality {
    init(_ quality: AttentionQuality) {
        self.init(
            recall: quality.all.recall, oracleDensity: quality.all.oracleDensity, outputError: quality.all.outputError)
    }
}

extension BlockScores {
    /// Masses of the reachable blocks of a head, sorted.
    func massCurve(head: Int) -> MassCurve {
        MassCurve(
            (0..<grid.blockRows).lazy.flatMap { row in
                grid.reachableColumns(ofRow: row).lazy.map { self[head, row, $0] }
            })
    }

    /// The part of the mass that a mask keeps, over all heads: the recall of the mask when these are the masses of a stride of 1.
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
