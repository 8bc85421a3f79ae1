internal import KernelInterface

/// The embedding of tokens: row `token` of a table, times a factor.
///
/// ```swift
/// let embedding = try TokenEmbedding(table: weight, scale: 1)
/// let hidden = try embedding([17, 4, 4])
/// ```
///
/// The table keeps its element type, and the rows are widened as they are read; results are the exact products rounded once, and once
/// more to a 16-bit type of the output.
///
/// - Results are bitwise equal for every number of threads.
/// - Complexity: O(tokens · channels).
/// - Scratch: none.
/// - Source: `torch.nn.Embedding`; `Gemma3TextScaledWordEmbedding` of Hugging Face transformers for the factor, which is √channels there,
///   rounded to the type of the model.
public struct TokenEmbedding: Sendable {
    /// Rows of the table.
    public let vocabulary: Int
    /// Columns of the table.
    public let channels: Int
    /// Multiplies every element.
    public let scale: Float
    /// The instruction set that calls execute.
    public let instructionSet: InstructionSet
    private let storage: TensorStorage
    private let type: StorageType
    private let kernels: any KernelTable.Type

    /// - Parameters:
    ///   - table: `[vocabulary, channels]`, not copied.
    ///   - scale: multiplies every element.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidShape` for another rank or no channels, `.invalidArgument` for a factor that is not finite,
    ///   `.unsupportedInstructionSet`.
    public init<Element: AttentionElement>(
        table: Tensor<Element>, scale: Float = 1, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try require(
            table.shape.count == 2 && table.shape[1] >= 1, .invalidShape, "table",
            expected: "[vocabulary, channels] with at least 1 channel", actual: "\(table.shape)")
        try require(scale.isFinite, .invalidArgument, "scale", expected: "finite", actual: "\(scale)")
        (vocabulary, channels) = (table.shape[0], table.shape[1])
        self.scale = scale
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
        // Other owners of the tensor copy its memory before they write.
        storage = table.storage
        type = Element.storageType
    }

    /// Writes the rows of some tokens.
    ///
    /// - Parameters:
    ///   - tokens: indices of rows of the table, in any order, also none.
    ///   - y: tokens × channels, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidArgument` naming the first token that is not in the table, `.invalidShape` for a y of other extents; nothing is
    ///   written then.
    public func run<Y: AttentionElement>(
        tokens: [Int], into y: consuming MutableMatrixView<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try requireMatrix("y", rows: y.rows, columns: y.columns, expected: (tokens.count, channels))
        // An iterator would allocate in debug builds.
        for index in 0..<tokens.count where tokens[index] < 0 || tokens[index] >= vocabulary {
            throw SparseKernelsError(
                .invalidArgument, "tokens[\(index)]", expected: "from 0 to \(vocabulary - 1)", actual: "\(tokens[index])")
        }
        if tokens.isEmpty { return }
        let target = RowTarget(&y)
        let tasks = RowTasks(rows: tokens.count, bytesPerRow: channels * (type.byteCount + target.type.byteCount))
        tokens.withUnsafeBufferPointer { tokens in
            let arguments = EmbedArguments(
                table: RowOperand(base: UnsafeRawPointer(storage.pointer), stride: channels, type: type),
                tokens: tokens.baseAddress!, y: target, rows: tokens.count, channels: channels, scale: scale)
            pool.run(EmbedCall(kernels: kernels, arguments: arguments, tasks: tasks), tasks)
        }
    }

    /// Writes the rows of some tokens into a tensor that is reused from call to call.
    /// - Throws: the errors of `run` with a view.
    public func run<Y: AttentionElement>(
        tokens: [Int], into y: inout Tensor<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(tokens: tokens, into: y.mutableMatrixView(named: "y"), on: pool)
    }

    /// The rows of some tokens, `[tokens, channels]`, in a new tensor.
    /// - Throws: `.invalidArgument` naming the first token that is not in the table.
    public func callAsFunction(_ tokens: [Int], on pool: WorkerPool = .shared) throws(SparseKernelsError) -> Tensor<Float> {
        var y = try Tensor<Float>(zeros: [tokens.count, channels])
        try run(tokens: tokens, into: &y, on: pool)
        return y
    }
}

private struct EmbedCall: PoolCall {
    let kernels: any KernelTable.Type
    let arguments: EmbedArguments
    let tasks: RowTasks

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let first = tasks.first(task)
        var part = arguments
        part.tokens = arguments.tokens + first
        part.y = arguments.y.from(first)
        part.rows = tasks.count(task)
        kernels.embedTokens(&part)
    }
}
