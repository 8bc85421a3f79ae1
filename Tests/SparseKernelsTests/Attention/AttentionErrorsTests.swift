import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Every wrong argument is a typed error that names the argument, the rule and the value, and then nothing is written.
@Suite("Attention errors")
struct AttentionErrorsTests {
    // MARK: - Shapes

    struct Extents: Sendable {
        var queryLength = 4
        var keyLength = 5
        var queryHeads = 6
        var kvHeads = 3
        var headDim = 7
        var valueDim = 8

        func shape() throws -> AttentionShape {
            try AttentionShape(
                queryLength: queryLength, keyLength: keyLength, queryHeads: queryHeads, kvHeads: kvHeads, headDim: headDim,
                valueDim: valueDim)
        }
    }

    @Test("negative lengths and other extents below 1 are refused", arguments: [0, -1, Int.min])
    func extentsBelowOne(_ extent: Int) {
        let s = "\(extent)"
        if extent < 0 {
            expectError(.invalidShape, "queryLength", containing: [s]) { _ = try Extents(queryLength: extent).shape() }
            expectError(.invalidShape, "keyLength", containing: [s]) { _ = try Extents(keyLength: extent).shape() }
        }
        expectError(.invalidShape, "queryHeads", containing: [s]) { _ = try Extents(queryHeads: extent).shape() }
        expectError(.invalidShape, "kvHeads", containing: [s]) { _ = try Extents(kvHeads: extent).shape() }
        expectError(.invalidShape, "headDim", containing: [s]) { _ = try Extents(headDim: extent).shape() }
        expectError(.invalidShape, "valueDim", containing: [s]) { _ = try Extents(valueDim: extent).shape() }
    }

    @Test("heads wider than the kernels' scratch are refused")
    func wideHeads() throws {
        expectError(.invalidShape, "headDim", containing: ["257", "256"]) { _ = try Extents(headDim: 257).shape() }
        expectError(.invalidShape, "valueDim", containing: ["257", "256"]) { _ = try Extents(valueDim: 257).shape() }
        #expect(try Extents(headDim: 256, valueDim: 256).shape().headDim == AttentionShape.maximumHeadDim)
    }

    @Test("query heads that key/value heads do not divide are refused", arguments: [(6, 4), (1, 2), (7, 3)])
    func headsThatDoNotDivide(_ heads: (Int, Int)) {
        expectError(.invalidShape, "queryHeads", containing: ["\(heads.0)", "\(heads.1)"]) {
            _ = try Extents(queryHeads: heads.0, kvHeads: heads.1).shape()
        }
    }

    @Test("a shape read from operands that disagree is refused")
    func shapeOfOperands() throws {
        let query = try Tensor<Float>(zeros: [4, 3, 8])
        let key = try Tensor<Float>(zeros: [2, 5, 8])
        let value = try Tensor<Float>(zeros: [2, 5, 6])
        let shape = try AttentionShape(query: query.view(), key: key.view(), value: value.view())
        #expect(shape == (try Extents(queryLength: 3, queryHeads: 4, kvHeads: 2, headDim: 8, valueDim: 6).shape()))
        let narrow = try Tensor<Float>(zeros: [2, 5, 9])
        expectError(.invalidShape, "key", containing: ["8", "9"]) {
            _ = try AttentionShape(query: query.view(), key: narrow.view(), value: value.view())
        }
        let short = try Tensor<Float>(zeros: [2, 4, 6])
        expectError(.invalidShape, "value", containing: ["5", "4"]) {
            _ = try AttentionShape(query: query.view(), key: key.view(), value: short.view())
        }
    }

    @Test("lengths whose work does not fit in 63 bits are refused without a trap", arguments: InstructionSet.available)
    func hugeLengths(_ set: InstructionSet) throws {
        for (queries, keys) in [(Int.max, Int.max), (1 << 62, 1), (1 << 32, 1 << 32), (Int.max, 0), (0, 1 << 60)] {
            expectError(.invalidShape, "shape", containing: ["\(queries)", "\(keys)"]) {
                let shape = try Extents(queryLength: queries, keyLength: keys).shape()
                _ = try DenseAttention(shape, mask: .causal(window: Int.max), instructionSet: set)
            }
        }
        // The largest sequences in use are valid.
        let shape = try Extents(
            queryLength: 1 << 20, keyLength: 1 << 22, queryHeads: 128, kvHeads: 8, headDim: 256, valueDim: 256
        ).shape()
        let attention = try DenseAttention(shape, mask: .causal(window: Int.max), instructionSet: set)
        #expect(attention.scratchByteCount > 0)
    }

    // MARK: - Options

    @Test("options outside their domain are refused", arguments: InstructionSet.available)
    func badOptions(_ set: InstructionSet) throws {
        let shape = try Extents().shape()
        func expect(
            _ argument: String, _ text: String, _ modifiers: ScoreModifiers,
            code: SparseKernelsError.Code = .invalidArgument, sourceLocation: SourceLocation = #_sourceLocation
        ) {
            expectError(code, argument, containing: [text], sourceLocation: sourceLocation) {
                _ = try DenseAttention(shape, modifiers: modifiers, instructionSet: set)
            }
        }
        for scale: Float in [.nan, .infinity, -.infinity] {
            expect("softmaxScale", "\(scale)", ScoreModifiers(softmaxScale: scale))
        }
        for cap: Float in [0, -0.0, -1, .nan, .infinity] {
            expect("logitsSoftCap", "\(cap)", ScoreModifiers(logitsSoftCap: cap))
        }
        for count in [0, 5, 7] {
            let slopes = Array(repeating: Float(1), count: count)
            expect("aliBiSlopes", "\(count)", ScoreModifiers(aliBiSlopes: slopes), code: .invalidShape)
        }
        expect("aliBiSlopes[2]", "nan", ScoreModifiers(aliBiSlopes: [0, 1, .nan, 3, 4, 5]))
        expect("aliBiSlopes[5]", "inf", ScoreModifiers(aliBiSlopes: [0, 1, 2, 3, 4, .infinity]))
        // Zero and negative scales are unusual but valid.
        #expect(throws: Never.self) {
            try DenseAttention(shape, modifiers: ScoreModifiers(softmaxScale: -1), instructionSet: set)
        }
    }

    @Test("windows below 1 are refused", arguments: InstructionSet.available, [0, -1, Int.min])
    func badWindows(_ set: InstructionSet, _ window: Int) throws {
        let shape = try Extents().shape()
        for mask in [AttentionMask.full(window: window), .causal(window: window)] {
            expectError(.invalidArgument, "mask.window", containing: ["\(window)"]) {
                _ = try DenseAttention(shape, mask: mask, instructionSet: set)
            }
        }
    }

    @Test("sides of a window below −1 are refused by name", arguments: InstructionSet.available, [-2, Int.min])
    func badSides(_ set: InstructionSet, _ side: Int) throws {
        let shape = try Extents().shape()
        for (window, name) in [
            (AttentionWindow(left: side, right: 1), "left"), (AttentionWindow(left: nil, right: side), "right"),
        ] {
            for isCausal in [true, false] {
                expectError(.invalidArgument, "mask.\(name)", containing: ["\(side)", "no limit"]) {
                    _ = try DenseAttention(
                        shape, mask: AttentionMask(isCausal: isCausal, window: window), instructionSet: set)
                }
                expectError(.invalidArgument, "window.\(name)", containing: ["\(side)"]) {
                    _ = try BlockSparseAttention(
                        shape, heads: [.dense], isCausal: isCausal, window: window, instructionSet: set)
                }
            }
        }
    }

    // MARK: - Operands

    /// The shapes of one call. Each test makes one of them wrong.
    struct Operands: Sendable {
        var query = [6, 4, 7]
        var key = [3, 5, 7]
        var value = [3, 5, 8]
        var output = [6, 4, 8]
        var bias: [Int]? = [6, 4, 5]
        var logSumExp = 24

        /// Runs the call of `Extents()` and returns whether every element of output and LSE still holds its guard value.
        func run(_ set: InstructionSet) throws -> (error: SparseKernelsError?, isUntouched: Bool) {
            let attention = try DenseAttention(Extents().shape(), instructionSet: set)
            let q = try Tensor<Float>.normal(query, seed: 1)
            let k = try Tensor<Float>.normal(key, seed: 2)
            let v = try Tensor<Float>.normal(value, seed: 3)
            let b = try bias.map { try Tensor<Float>(zeros: $0) }
            var o = try Tensor<Float>(output) { _ in 77 }
            var lse = Array(repeating: Float(77), count: logSumExp)
            var caught: SparseKernelsError?
            do {
                if let b {
                    try attention.run(
                        query: q.view(), key: k.view(), value: v.view(), bias: b.view(), output: o.mutableView(),
                        logSumExp: lse.mutableSpan)
                } else {
                    try attention.run(
                        query: q.view(), key: k.view(), value: v.view(), output: o.mutableView(),
                        logSumExp: lse.mutableSpan)
                }
            } catch { caught = error }
            return (caught, o.elements.allSatisfy { $0 == 77 } && lse.allSatisfy { $0 == 77 })
        }
    }

    struct Mismatch: Sendable, CustomTestStringConvertible {
        var argument: String
        var texts: [String]
        var operands: Operands
        var testDescription: String { "\(argument) \(texts)" }

        static let all: [Mismatch] = {
            var all: [Mismatch] = []
            /// Adds one case per axis, in which the operand's shape is one longer on that axis.
            func add(_ argument: String, _ path: WritableKeyPath<Operands, [Int]>) {
                for axis in 0..<3 {
                    var operands = Operands()
                    let expected = operands[keyPath: path][axis]
                    operands[keyPath: path][axis] += 1
                    all.append(Mismatch(argument: argument, texts: ["\(expected)", "\(expected + 1)"], operands: operands))
                }
            }
            add("query", \.query)
            add("key", \.key)
            add("value", \.value)
            add("output", \.output)
            for (shape, argument, texts) in [
                ([6, 5, 5], "bias", ["4", "5"]), ([6, 4, 6], "bias", ["5", "6"]), ([2, 4, 5], "bias.heads", ["1", "6", "2"]),
                ([1, 4, 4], "bias", ["5", "4"]),
            ] {
                all.append(Mismatch(argument: argument, texts: texts, operands: Operands(bias: shape)))
            }
            for count in [0, 23, 25] {
                all.append(
                    Mismatch(argument: "logSumExp", texts: ["24", "\(count)"], operands: Operands(logSumExp: count)))
            }
            return all
        }()
    }

    @Test(
        "an operand that disagrees with the plan is named, and nothing is written", arguments: InstructionSet.available,
        Mismatch.all)
    func mismatches(_ set: InstructionSet, _ test: Mismatch) throws {
        let (error, isUntouched) = try test.operands.run(set)
        #expect(error?.code == .invalidShape)
        #expect(error?.argument == test.argument)
        for text in test.texts { #expect(error?.description.contains(text) == true) }
        #expect(isUntouched)
    }

    @Test("operands that agree are accepted", arguments: InstructionSet.available)
    func matchingOperands(_ set: InstructionSet) throws {
        for operands in [Operands(), Operands(bias: nil), Operands(bias: [1, 4, 5])] {
            let (error, isUntouched) = try operands.run(set)
            #expect(error == nil && !isUntouched)
        }
    }

    // MARK: - The error itself

    @Test("a description reads as a sentence")
    func description() {
        let error = SparseKernelsError(.invalidShape, "headDim", expected: "at most 256", actual: "257")
        #expect("\(error)" == "invalid shape: headDim must be at most 256, got 257")
        #expect(error == SparseKernelsError(.invalidShape, "headDim", expected: "at most 256", actual: "257"))
        #expect(error.code != .invalidStride)
    }
}
