/// The tokens of a packed batch cut into tasks of adjacent tokens of one sequence. Only the lengths determine the cuts.
///
/// Sequence i has the task numbers from ⌊start / chunk⌋ + i on, so that no list of tasks is made. Some numbers have no tokens left
/// to do; every sequence has at least one number.
struct SequenceChunks {
    let starts: [Int]
    let chunk: Int
    /// Task numbers of all sequences.
    let count: Int

    /// - Parameter chunk: tokens of a task, at least 1.
    init(_ batch: PackedSequences, chunk: Int) {
        starts = batch.starts
        self.chunk = chunk
        count = batch.tokenCount / chunk + batch.lengths.count
    }

    /// The sequence of a task, and its tokens within the sequence, of which there may be none.
    func part(_ task: Int) -> (sequence: Int, tokens: Range<Int>) {
        // The last sequence whose first number is not beyond the task.
        var (low, high) = (0, starts.count - 1)
        while high - low > 1 {
            let middle = (low + high) / 2
            if starts[middle] / chunk + middle <= task { low = middle } else { high = middle }
        }
        let first = (task - starts[low] / chunk - low) * chunk
        let length = starts[low + 1] - starts[low]
        return (low, min(first, length)..<min(first + chunk, length))
    }
}
