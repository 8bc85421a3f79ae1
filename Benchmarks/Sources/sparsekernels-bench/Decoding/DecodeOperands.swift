import Foundation
import SparseKernels
import SparseKernelsReference

/// Keys, values and the queries of new tokens, with the structure that selections need. Speed does not depend on it, because
/// every page has the same size and the budget decides how many are read. But the number of tokens that Twilight keeps does.
///
/// Each KV head is a `StructuredInput` of its own. Its query heads have the query of the last token, each with its own noise.
final class DecodeOperands {
    static let (queryHeads, kvHeads, headDim) = (32, 8, 128)

    let context: Int
    /// `[kvHeads, context, headDim]`.
    let key: Tensor<Float>
    let value: Tensor<Float>
    /// The common part of the query heads of a KV head, `[kvHeads][headDim]`.
    private let asked: [[Float]]

    init(context: Int) throws {
        self.context = context
        let inputs = Slots(count: Self.kvHeads)
        DispatchQueue.concurrentPerform(iterations: Self.kvHeads) { head in
            inputs[head] = Result { try StructuredInput(tokens: context, headDim: Self.headDim, seed: UInt64(head + 1)) }
        }
        var key = try Tensor<Float>(zeros: [Self.kvHeads, context, Self.headDim])
        var value = key
        var asked: [[Float]] = []
        for head in 0..<Self.kvHeads {
            let input = try inputs[head].get()
            let last = (context - 1) * Self.headDim
            asked.append((0..<Self.headDim).map { input.query[flat: last + $0] })
            key.replace(head: head, with: input.key)
            value.replace(head: head, with: input.value)
            inputs.release(head)
        }
        self.key = key
        self.value = value
        self.asked = asked
    }

    /// Queries of one new token in each of `sequences` sequences, `[queryHeads, sequences, headDim]`.
    func queries(sequences: Int) throws -> Tensor<Float> {
        var generator = SplitMix64(seed: 11)
        let perKVHead = Self.queryHeads / Self.kvHeads
        return try Tensor([Self.queryHeads, sequences, Self.headDim]) { flat in
            let (row, channel) = flat.quotientAndRemainder(dividingBy: Self.headDim)
            return asked[row / sequences / perKVHead][channel] + 0.25 * generator.normal()
        }
    }

    /// Results of concurrent calls, each in its own slot.
    private final class Slots: @unchecked Sendable {
        private let places: UnsafeMutableBufferPointer<Result<StructuredInput, any Error>?>

        init(count: Int) {
            places = .allocate(capacity: count)
            places.initialize(repeating: nil)
        }

        deinit {
            places.deinitialize()
            places.deallocate()
        }

        subscript(index: Int) -> Result<StructuredInput, any Error> {
            get { places[index]! }
            set { places[index] = newValue }
        }

        func release(_ index: Int) { places[index] = nil }
    }
}

extension RunContext {
    /// The operands of a context; groups of one context follow each other and share them.
    func decodeOperands(context: Int, _ announce: (String) -> Void) throws -> DecodeOperands {
        try shared.value(for: context) {
            announce("making keys and values of \(context) tokens")
            return try DecodeOperands(context: context)
        }
    }
}

extension Tensor<Float> {
    /// Copies the only head of `other` to one of this tensor.
    fileprivate mutating func replace(head: Int, with other: Tensor<Float>) {
        let count = shape[1] * shape[2]
        var target = mutableSpan
        target.withUnsafeMutableBufferPointer { target in
            other.span.withUnsafeBufferPointer { source in
                (target.baseAddress! + head * count).update(from: source.baseAddress!, count: count)
            }
        }
    }
}
