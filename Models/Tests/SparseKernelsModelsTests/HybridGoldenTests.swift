import Foundation
import SparseKernels
import SparseKernelsModels
import Testing

/// The trained hybrid model against a forward pass in float64, step by step.
@Suite(
    "The trained hybrid model",
    .enabled(if: ProcessInfo.processInfo.environment["SPARSEKERNELS_DATA"] != nil, "SPARSEKERNELS_DATA is not set"))
struct HybridGoldenTests {
    private func data() throws -> String { try #require(ProcessInfo.processInfo.environment["SPARSEKERNELS_DATA"]) }

    private func model(_ linear: LinearFormat) throws -> LanguageModel {
        try LanguageModel(folder: data() + "/models/hybrid-lm", linear: linear)
    }

    private func options(chunk: Int = 1024) -> SessionOptions {
        var options = SessionOptions(keyFormat: .float32, valueFormat: .float32, tokenCapacity: 2048)
        options.chunk = chunk
        return options
    }

    @Test(
        "logits are those of the recorded pass: at once, in chunks, and by prompt and steps",
        arguments: [LinearFormat.float32, .float16])
    func logits(_ linear: LinearFormat) throws {
        let golden = try SafetensorsFile(path: data() + "/goldens/models/hybrid_lm.safetensors")
        let tokens = try golden.tensor("in.tokens", as: Int32.self).elements.map(Int.init)
        let expected = try golden.floatTensor("out.logits")
        let model = try model(linear)
        #expect(largestDifference(try model.logits(tokens), expected) < 2e-3)
        let session = try LanguageSession(model, options(chunk: 64))
        let sequence = session.makeSequence()
        let prompt = try session.append([Array(tokens[..<200])], to: [sequence], logits: .all)
        #expect(largestDifference(prompt, try golden.floatTensor("out.logits_prefill")) < 2e-3)
        var rows: [Float] = []
        for token in tokens[200...] { rows += try session.append([[token]], to: [sequence]).elements }
        #expect(largestDifference(try Tensor([100, 256], rows), try golden.floatTensor("out.logits_steps")) < 2e-3)
    }

    /// The value of a pass in float64 with textbook loops in NumPy, whose logits of the recorded tokens are those of the golden file to
    /// 10⁻⁶.
    @Test("a text is coded in as many bits as in float64")
    func bitsPerByte() throws {
        let tokens = Self.text.utf8.map(Int.init)
        #expect(tokens.count == 1981)
        let bits = try LanguageModel.codeLength(model(.float16).logits(tokens), tokens)
        #expect(abs(bits / 2396.356 - 1) < 0.001, "\(bits)")
        // Steps from a prompt in chunks.
        let session = try LanguageSession(model(.float16), options(chunk: 500))
        let sequence = session.makeSequence()
        let prompt = try session.append([Array(tokens[..<1200])], to: [sequence], logits: .all)
        var rows = prompt.elements
        for token in tokens[1200..<1400] { rows += try session.append([[token]], to: [sequence]).elements }
        rows += try session.append([Array(tokens[1400...])], to: [sequence], logits: .all).elements
        let parts = try LanguageModel.codeLength(Tensor([tokens.count, 256], rows), tokens)
        #expect(abs(parts / 2396.356 - 1) < 0.001, "\(parts)")
    }

    @Test("six numbers that are hidden in a text are found")
    func needles() throws {
        let corpus = try TextCorpus(
            path: try #require(ModelData.sources), extensions: ["swift"], tokenizer: ByteTokenizer())
        let session = try LanguageSession(model(.float16), options())
        let task = try NeedleTask(context: 1024, trials: 2)
        let score = try task(session, in: corpus, tokenizer: ByteTokenizer())
        #expect(score.questions == 12 && score.correct >= 11, "\(score)")
    }

    /// Of the repository, as it was when the value was computed.
    private static let text = #"""
        /// The sequences of a packed batch: the tokens of each lie one after the other, and continue the state in a slot of their own.
        ///
        /// ```swift
        /// let batch = try PackedSequences(lengths: [512, 37], slots: [4, 0])   // rows 0..<512 and 512..<549
        /// ```
        ///
        /// Nothing flows from one sequence to the next. A sequence starts from what its slot holds, which is zero after
        /// ``RecurrentStates/reset(_:)``. One without tokens leaves its state as it is.
        public struct PackedSequences: Hashable, Sendable {
            /// Tokens of each sequence, 0 or more.
            public let lengths: [Int]
            /// The slot of each sequence; no two have the same.
            public let slots: [Int]
            /// Tokens of all sequences.
            public let tokenCount: Int
            /// Where each sequence starts, and the end: one more than there are sequences.
            let starts: [Int]

            /// - Parameters:
            ///   - lengths: tokens of each sequence, 0 or more.
            ///   - slots: the slot of each sequence; nil means 0, 1, 2, ….
            /// - Throws: `.invalidShape` for another number of slots than of lengths; `.invalidArgument` for a negative length or slot, a sum
            ///   that overflows, or two sequences with one slot.
            public init(lengths: [Int], slots: [Int]? = nil) throws(SparseKernelsError) {
                let slots = slots ?? Array(lengths.indices)
                try require(
                    slots.count == lengths.count, .invalidShape, "slots", expected: "\(lengths.count), one per sequence",
                    actual: "\(slots.count)")
                var starts = [0]
                for (index, length) in lengths.enumerated() {
                    let (end, overflow) = starts[index].addingReportingOverflow(length)
                    try require(
                        length >= 0 && !overflow, .invalidArgument, "lengths[\(index)]", expected: "0 or more, in a sum below 2⁶³",
                        actual: "\(length)")
                    starts.append(end)
                }
                var used: Set<Int> = []
                for (index, slot) in slots.enumerated() {
                    try require(

        """#
}
