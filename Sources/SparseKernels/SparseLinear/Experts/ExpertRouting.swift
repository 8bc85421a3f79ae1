/// The experts of every token: their numbers and weights, and all (token, slot) pairs sorted by expert.
///
/// Slot s of token t is number t · expertsPerToken + s. The sort is stable, so that an expert meets its tokens in their order:
///
///     sortedSlots   the slots of expert 0, then those of expert 1, …          every slot once: none is dropped
///     offsets[e]    where those of expert e begin; offsets[e + 1] − offsets[e] = counts[e], which may be 0
///
/// ``ExpertRouter`` makes it from logits. `init(ids:weights:…)` takes the choice of a router of the caller's.
///
/// A routing is a value that keeps its memory: reuse it from call to call, and it is allocated once for the most tokens.
public struct ExpertRouting: Sendable {
    public let experts: Int
    public let expertsPerToken: Int
    public private(set) var tokens = 0
    /// Tokens for which there is memory.
    private var capacity: Int
    /// Ids, weights, sorted slots and places of `capacity` tokens; then counts and offsets of the experts.
    private var storage: TensorStorage

    // MARK: - Making

    /// A routing of no tokens, for a router to write.
    ///
    /// - Parameters:
    ///   - experts: the number of experts.
    ///   - expertsPerToken: slots of every token.
    ///   - capacity: tokens for which memory is allocated ahead of time.
    /// - Throws: `.invalidArgument` for no experts or slots outside 1…experts; `.invalidShape` for more than 2³¹ − 1 slots.
    public init(experts: Int, expertsPerToken: Int, capacity: Int = 0) throws(SparseKernelsError) {
        try Self.requireCounts(experts: experts, expertsPerToken: expertsPerToken)
        try Self.requireTokens("capacity", max(capacity, 0), expertsPerToken: expertsPerToken)
        self.experts = experts
        self.expertsPerToken = expertsPerToken
        self.capacity = max(capacity, 0)
        storage = Self.storage(tokens: self.capacity, slots: expertsPerToken, experts: experts)
        sort()
    }

    /// A routing of a router of the caller's.
    ///
    /// - Parameters:
    ///   - ids: `[tokens, expertsPerToken]`, the experts of every token, in the order in which their outputs are added.
    ///   - weights: as many factors of the outputs.
    ///   - experts: the number of experts.
    /// - Throws: the errors of `update(ids:weights:)`, `.invalidShape` for ids that are no matrix, and those of
    ///   `init(experts:expertsPerToken:)`.
    public init(ids: Tensor<Int32>, weights: Tensor<Float>, experts: Int) throws(SparseKernelsError) {
        try require(
            ids.shape.count == 2, .invalidShape, "ids", expected: "[tokens, expertsPerToken]", actual: "\(ids.shape)")
        try require(
            weights.shape == ids.shape, .invalidShape, "weights", expected: "\(ids.shape), as ids",
            actual: "\(weights.shape)")
        try self.init(experts: experts, expertsPerToken: ids.shape[1], capacity: ids.shape[0])
        try update(ids: ids.span, weights: weights.span)
    }

    /// Replaces all tokens by those of a router of the caller's. Memory is allocated only for more tokens than ever before.
    ///
    /// - Parameters:
    ///   - ids: `expertsPerToken` experts of each token, token by token.
    ///   - weights: as many factors.
    /// - Throws: `.invalidShape` for ids that are not whole tokens, or another number of weights; `.invalidArgument` for an expert that is
    ///   not there, one that a token has twice, or a weight that is not finite, naming token and slot. Nothing is changed then.
    public mutating func update(ids: Span<Int32>, weights: Span<Float>) throws(SparseKernelsError) {
        let slots = expertsPerToken
        try require(
            ids.count % slots == 0, .invalidShape, "ids", expected: "a multiple of \(slots), the experts per token",
            actual: "\(ids.count)")
        try require(
            weights.count == ids.count, .invalidShape, "weights", expected: "\(ids.count), one per expert of a token",
            actual: "\(weights.count)")
        try Self.requireTokens("ids", ids.count / slots, expertsPerToken: slots)
        for index in 0..<ids.count {
            let (token, slot) = (index / slots, index % slots)
            let id = ids[index]
            try require(
                id >= 0 && Int(id) < experts, .invalidArgument, "ids", expected: "experts 0 to \(experts - 1)",
                actual: "\(id) in slot \(slot) of token \(token)")
            for earlier in token * slots..<index {
                try require(
                    ids[earlier] != id, .invalidArgument, "ids", expected: "different experts for a token",
                    actual: "\(id) in slots \(earlier % slots) and \(slot) of token \(token)")
            }
            try require(
                weights[index].isFinite, .invalidArgument, "weights", expected: "finite",
                actual: "\(weights[index]) in slot \(slot) of token \(token)")
        }
        prepare(tokens: ids.count / slots)
        for index in 0..<ids.count {
            idPointer[index] = ids[index]
            weightPointer[index] = weights[index]
        }
        sort()
    }

    // MARK: - Contents

    /// The expert in a slot of a token.
    public func expert(ofToken token: Int, slot: Int) -> Int { Int(idPointer[index(token, slot)]) }

    /// The factor of the output of the expert in a slot of a token.
    public func weight(ofToken token: Int, slot: Int) -> Float { weightPointer[index(token, slot)] }

    /// The number of tokens of an expert.
    public func tokenCount(ofExpert expert: Int) -> Int {
        precondition(expert >= 0 && expert < experts, "expert \(expert) of \(experts)")
        return Int(countPointer[expert])
    }

    /// A copy of the experts, `[tokens, expertsPerToken]`.
    public var ids: [Int32] { copy(idPointer, slotCount) }
    /// A copy of the factors, `[tokens, expertsPerToken]`.
    public var weights: [Float] { Array(UnsafeBufferPointer(start: weightPointer, count: slotCount)) }
    /// A copy of the numbers of tokens, `[experts]`.
    public var counts: [Int32] { copy(countPointer, experts) }
    /// A copy of the places in `sortedSlots` where the experts begin, and its size, `[experts + 1]`.
    public var offsets: [Int32] { copy(offsetPointer, experts + 1) }
    /// A copy of the slots in the order of their experts, `[tokens · expertsPerToken]`.
    public var sortedSlots: [Int32] { copy(sortedPointer, slotCount) }

    /// The experts that have tokens: those whose weights a layer reads.
    public var activeExperts: Int {
        var active = 0
        for expert in 0..<experts where countPointer[expert] > 0 { active += 1 }
        return active
    }

    private func copy(_ pointer: UnsafePointer<Int32>, _ count: Int) -> [Int32] {
        Array(UnsafeBufferPointer(start: pointer, count: count))
    }

    private func index(_ token: Int, _ slot: Int) -> Int {
        precondition(
            token >= 0 && token < tokens && slot >= 0 && slot < expertsPerToken,
            "slot \(slot) of token \(token) outside \(tokens) × \(expertsPerToken)")
        return token * expertsPerToken + slot
    }

    // MARK: - Memory

    var slotCount: Int { tokens * expertsPerToken }
    private var part: Int { capacity * expertsPerToken }
    private var words: UnsafeMutablePointer<Int32> { storage.pointer.assumingMemoryBound(to: Int32.self) }

    var idPointer: UnsafeMutablePointer<Int32> { words }
    var weightPointer: UnsafeMutablePointer<Float> {
        (storage.pointer + part * 4).assumingMemoryBound(to: Float.self)
    }
    var sortedPointer: UnsafeMutablePointer<Int32> { words + 2 * part }
    /// Where every slot is in `sortedPointer`.
    var placePointer: UnsafeMutablePointer<Int32> { words + 3 * part }
    var countPointer: UnsafeMutablePointer<Int32> { words + 4 * part }
    var offsetPointer: UnsafeMutablePointer<Int32> { words + 4 * part + experts }

    private static func storage(tokens: Int, slots: Int, experts: Int) -> TensorStorage {
        TensorStorage(byteCount: (4 * tokens * slots + 2 * experts + 1) * 4)
    }

    /// Makes room for the ids and weights of some tokens, whose contents are then undefined.
    mutating func prepare(tokens: Int) {
        if tokens > capacity || !isKnownUniquelyReferenced(&storage) {
            capacity = max(capacity, tokens)
            storage = Self.storage(tokens: capacity, slots: expertsPerToken, experts: experts)
        }
        self.tokens = tokens
    }

    /// Sorts the slots by expert.
    mutating func sort() {
        Self.sort(
            ids: idPointer, count: slotCount, experts: experts, counts: countPointer, offsets: offsetPointer,
            sorted: sortedPointer, places: placePointer)
    }

    /// Sorts slots by expert, equal ones in their order.
    static func sort(
        ids: UnsafePointer<Int32>, count: Int, experts: Int, counts: UnsafeMutablePointer<Int32>,
        offsets: UnsafeMutablePointer<Int32>, sorted: UnsafeMutablePointer<Int32>, places: UnsafeMutablePointer<Int32>
    ) {
        for expert in 0..<experts { counts[expert] = 0 }
        for slot in 0..<count { counts[Int(ids[slot])] += 1 }
        offsets[0] = 0
        for expert in 0..<experts {
            offsets[expert + 1] = offsets[expert] + counts[expert]
            counts[expert] = 0
        }
        for slot in 0..<count {
            let expert = Int(ids[slot])
            let place = offsets[expert] + counts[expert]
            counts[expert] += 1
            sorted[Int(place)] = Int32(truncatingIfNeeded: slot)
            places[slot] = place
        }
    }

    // MARK: - Checks

    static func requireCounts(experts: Int, expertsPerToken: Int) throws(SparseKernelsError) {
        try require(
            experts >= 1 && experts <= 1 << 16, .invalidArgument, "experts", expected: "1 to 65536", actual: "\(experts)")
        try require(
            expertsPerToken >= 1 && expertsPerToken <= experts, .invalidArgument, "expertsPerToken",
            expected: "1 to \(experts), the number of experts", actual: "\(expertsPerToken)")
    }

    static func requireTokens(_ name: String, _ tokens: Int, expertsPerToken: Int) throws(SparseKernelsError) {
        let (slots, overflow) = tokens.multipliedReportingOverflow(by: expertsPerToken)
        try require(
            !overflow && slots < 1 << 31, .invalidShape, name, expected: "fewer than 2³¹ slots",
            actual: "\(tokens) tokens of \(expertsPerToken)")
    }
}

extension ExpertRouting: Equatable {
    /// Whether the same experts have the same tokens with the same weights. Memory that is held for more does not count.
    public static func == (a: ExpertRouting, b: ExpertRouting) -> Bool {
        a.experts == b.experts && a.expertsPerToken == b.expertsPerToken && a.ids == b.ids && a.weights == b.weights
    }
}
