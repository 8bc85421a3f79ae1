public import SparseKernels

/// A masked-diffusion language model as `FastDLLMDecoder` drives it: every position of a sequence sees every other one, and
/// keys and values of positions that did not run are those of the last call in which they did.
///
/// One call is enough for all caches of the paper, because they differ only in the positions that run:
///
/// | Call | Positions |
/// |---|---|
/// | without a cache, and at the start of a block | all |
/// | `.prefix` | from the block on |
/// | `.dual` | the block |
///
/// The released PrefixCache does not write back what it computes for the block and what follows. Here it is written over, and
/// no call reads it before it is written again.
public protocol DiffusionModel {
    /// Entries of a row of logits.
    var vocabularySize: Int { get }
    /// The token of a position that is not filled yet. It may be outside the vocabulary of the output.
    var maskToken: Int { get }
    /// The most positions of a sequence.
    var capacity: Int { get }

    /// Throws unless the model takes these tokens. Called before the first pass, so that a bad prompt changes nothing.
    func check(_ tokens: [Int]) throws(SparseKernelsError)

    /// Runs the tokens of some positions, each of which sees the whole sequence.
    ///
    /// - Parameters:
    ///   - rows: ascending positions of `running`, maybe none. Only they reach the output projection.
    ///   - running: positions whose queries, keys and values are computed; keys and values replace those that are there.
    ///     Every sequence begins with a call over all of them.
    ///   - tokens: the whole sequence, with masks.
    ///   - pool: the threads to use.
    /// - Returns: `[rows, vocabularySize]`, as the model predicts them; the shift of models such as Dream is not undone.
    mutating func logits(
        of rows: [Int], running: Range<Int>, in tokens: [Int], on pool: WorkerPool
    ) throws(SparseKernelsError) -> Tensor<Float>
}
