internal import KernelInterface

/// An order of tokens, one for all heads or one per head: position *p* of head *h* holds token `order(head: h)[p]`.
///
/// Attention does not depend on the order of keys, and queries are independent of each other. So any order may be chosen in
/// which the tokens that belong together are adjacent. ``PermutedAttention`` gathers the tokens of a call in such an order.
public struct Permutation: Hashable, Sendable {
    /// The number of orders; 1 when all heads share one.
    public let heads: Int
    /// Tokens of each order.
    public let length: Int
    /// The orders one after the other.
    let elements: [Int32]

    /// - Parameter orders: one for all heads, or one per head. Each names every token once.
    /// - Throws: `.invalidShape` for no orders, different lengths or 2³¹ tokens or more; `.invalidArgument` naming the first
    ///   element that is out of range or was there before.
    public init(_ orders: [[Int32]]) throws(SparseKernelsError) {
        try require(!orders.isEmpty, .invalidShape, "orders", expected: "one or more", actual: "none")
        let length = orders[0].count
        try require(
            length <= Int(Int32.max), .invalidShape, "orders[0]", expected: "fewer than 2³¹ tokens", actual: "\(length)")
        for (head, order) in orders.enumerated() {
            try require(
                order.count == length, .invalidShape, "orders[\(head)]", expected: "\(length) tokens, as orders[0]",
                actual: "\(order.count)")
            var isSeen = [Bool](repeating: false, count: length)
            for (position, token) in order.enumerated() {
                try require(
                    token >= 0 && token < length && !isSeen[Int(token)], .invalidArgument, "orders[\(head)][\(position)]",
                    expected: "a token from 0 to \(length - 1) that was not named before", actual: "\(token)")
                isSeen[Int(token)] = true
            }
        }
        self.init(unchecked: orders.flatMap { $0 }, heads: orders.count, length: length)
    }

    /// Orders known to name every token once.
    init(unchecked elements: [Int32], heads: Int, length: Int) {
        self.elements = elements
        self.heads = heads
        self.length = length
    }

    /// The order in which tokens stay where they are.
    /// - Throws: `.invalidShape` for a negative length, or 2³¹ tokens or more.
    public static func identity(length: Int) throws(SparseKernelsError) -> Permutation {
        try require(
            length >= 0 && length <= Int(Int32.max), .invalidShape, "length", expected: "at least 0 and below 2³¹",
            actual: "\(length)")
        return Permutation(unchecked: (0..<Int32(length)).map { $0 }, heads: 1, length: length)
    }

    /// One order per entry of `choice`: head *h* has the only order of `orders[choice[h]]`.
    ///
    /// This is how heads choose among few orders, such as frame-major and token-major.
    /// - Throws: `.invalidShape` unless there is a choice and all orders have one head and the same length; `.invalidArgument`
    ///   for a choice that is not an index of `orders`.
    public init(choosing choice: [Int], from orders: [Permutation]) throws(SparseKernelsError) {
        try require(!choice.isEmpty, .invalidShape, "choice", expected: "one order per head", actual: "none")
        for (index, order) in orders.enumerated() {
            try require(
                order.heads == 1 && order.length == orders[0].length, .invalidShape, "orders[\(index)]",
                expected: "1 order of \(orders[0].length) tokens", actual: "\(order.heads) of \(order.length)")
        }
        for (head, index) in choice.enumerated() {
            try require(
                orders.indices.contains(index), .invalidArgument, "choice[\(head)]",
                expected: "an index below \(orders.count), the number of orders", actual: "\(index)")
        }
        self.init(unchecked: choice.flatMap { orders[$0].elements }, heads: choice.count, length: orders[0].length)
    }

    /// The tokens in the order of a head.
    public func order(head: Int) -> ArraySlice<Int32> {
        precondition(head >= 0 && (heads == 1 || head < heads), "head \(head) outside \(heads) orders")
        let first = heads == 1 ? 0 : head * length
        return elements[first..<first + length]
    }

    /// The permutation that undoes this one: position *t* holds the position of token *t*.
    public var inverse: Permutation {
        var result = [Int32](repeating: 0, count: elements.count)
        for first in stride(from: 0, to: elements.count, by: max(1, length)) {
            for position in 0..<length { result[first + Int(elements[first + position])] = Int32(position) }
        }
        return Permutation(unchecked: result, heads: heads, length: length)
    }

    /// The orders of a longer sequence in which these tokens start at `first`. The tokens around them stay in their places.
    /// - Throws: `.invalidShape` unless they fit in `length`.
    public func placed(at first: Int, of length: Int) throws(SparseKernelsError) -> Permutation {
        try require(
            first >= 0 && length <= Int(Int32.max) && first <= length - self.length, .invalidShape, "first",
            expected: "from 0 to \(length - self.length), so that \(self.length) tokens fit in \(length)", actual: "\(first)")
        if self.length == length { return self }
        var result: [Int32] = []
        result.reserveCapacity(heads * length)
        for head in 0..<heads {
            result.append(contentsOf: (0..<first).map { Int32($0) })
            result.append(contentsOf: order(head: head).map { $0 + Int32(first) })
            result.append(contentsOf: (first + self.length..<length).map { Int32($0) })
        }
        return Permutation(unchecked: result, heads: heads, length: length)
    }

    /// Throws `.invalidShape` unless this is one order of `length` tokens, or one for each of `heads`.
    func check(named name: String, heads: Int, length: Int, tokens: String) throws(SparseKernelsError) {
        try require(
            self.length == length && (self.heads == 1 || self.heads == heads), .invalidShape, name,
            expected: "1 or \(heads) orders of \(tokens) (\(length)) tokens", actual: "\(self.heads) of \(self.length)")
    }

    /// The rows of an operand in this order, `[heads, tokens, channels]`.
    ///
    /// - Parameters:
    ///   - operand: heads × `length` × channels, in any layout.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` when the operand has another length, or other heads than a permutation of several heads.
    /// - Complexity: O(heads · length · channels).
    public func gathered<Element: AttentionElement>(
        _ operand: TensorView<Element>, instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        try check(named: "permutation", heads: operand.heads, length: operand.tokens, tokens: "the operand's")
        let kernels = try InstructionSet.resolve(instructionSet).kernels
        return try Tensor(gathering: elements, lists: heads, from: AttentionOperand(operand), kernels, on: pool)
    }
}

/// The memory of a permutation while a call uses it.
struct HeadOrders {
    let first: UnsafePointer<Int32>
    let heads: Int
    let length: Int

    func order(head: Int) -> UnsafePointer<Int32> { heads == 1 ? first : first + head * length }
}
