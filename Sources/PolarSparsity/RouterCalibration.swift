public import SparseKernels

/// How many heads or channels a layer needs so that its router misses next to nothing of what is active.
///
/// Recall is the part of the measured activity that the selected ones have, over all tokens of a calibration together. With an activity
/// of 1 and 0 it is the part of the active channels that is found, as in the paper; with magnitudes, active channels count by
/// their size.
///
/// - Source: Polar Sparsity (arXiv 2505.14884), algorithm 2, which raises the number step by step until the recall is reached; here
///   every number is looked at at once.
public enum RouterCalibration {
    /// The least number of selected heads or channels per token that reaches a recall; 0 when nothing is active.
    ///
    /// - Parameters:
    ///   - scores: `[tokens, channels]`, what a router says.
    ///   - activity: `[tokens, channels]`, measured, finite and 0 or more.
    ///   - recall: above 0, at most 1.
    /// - Throws: `.invalidShape` for different extents; `.invalidArgument` for a recall out of range, scores that are NaN, and activity
    ///   that is negative or not finite.
    /// - Complexity: O(tokens · channels · log channels).
    public static func count(
        scores: MatrixView<Float>, activity: MatrixView<Float>, recall: Double = 0.99
    ) throws(SparseKernelsError) -> Int {
        try require(
            recall > 0 && recall <= 1, .invalidArgument, "recall", expected: "above 0, at most 1", actual: "\(recall)")
        let (ranks, total) = try activityByRank(scores, activity)
        var (covered, last) = (0.0, 0)
        for (rank, value) in ranks.enumerated() where value > 0 {
            // Sums of parts may miss the total by rounding, so that a recall of 1 asks for the last rank with activity.
            last = rank + 1
            covered += value
            if recall < 1 && covered >= recall * total { return last }
        }
        return last
    }

    /// The recall of so many selected heads or channels per token; 1 when nothing is active.
    ///
    /// - Parameters: those of `count(scores:activity:recall:)`; `count` is 0 to all.
    /// - Throws: those errors, and `.invalidArgument` for a count out of range.
    public static func recall(
        scores: MatrixView<Float>, activity: MatrixView<Float>, count: Int
    ) throws(SparseKernelsError) -> Double {
        try require(
            count >= 0 && count <= scores.columns, .invalidArgument, "count", expected: "0 to \(scores.columns)",
            actual: "\(count)")
        let (ranks, total) = try activityByRank(scores, activity)
        return total == 0 ? 1 : ranks[..<count].reduce(0, +) / total
    }

    /// The activity that channels of each place in the order of scores have, over all tokens, and the sum of all.
    private static func activityByRank(
        _ scores: MatrixView<Float>, _ activity: MatrixView<Float>
    ) throws(SparseKernelsError) -> (ranks: [Double], total: Double) {
        let (tokens, channels) = (scores.rows, scores.columns)
        try require(
            activity.rows == tokens && activity.columns == channels, .invalidShape, "activity",
            expected: "\(tokens) × \(channels), as the scores have", actual: "\(activity.rows) × \(activity.columns)")
        var ranks = [Double](repeating: 0, count: channels)
        var (row, order) = ([Float](repeating: 0, count: channels), Array(0..<channels))
        for token in 0..<tokens {
            for channel in 0..<channels {
                row[channel] = scores[token, channel]
                try require(
                    !row[channel].isNaN, .invalidArgument, "scores[\(token), \(channel)]", expected: "not NaN", actual: "nan")
                let value = activity[token, channel]
                try require(
                    value >= 0 && value.isFinite, .invalidArgument, "activity[\(token), \(channel)]",
                    expected: "finite, 0 or more", actual: "\(value)")
            }
            // The same order as that of a selection: of equal scores the lower channel comes first.
            order.sort { (row[$1], $0) < (row[$0], $1) }
            for (rank, channel) in order.enumerated() { ranks[rank] += Double(activity[token, channel]) }
        }
        return (ranks, ranks.reduce(0, +))
    }
}
