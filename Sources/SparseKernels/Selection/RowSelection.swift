/// The selection of one row: candidates and forced elements go in, then a rule keeps the best of them.
///
/// What is kept is marked in a row of bits that the caller cleared. Both memories are the caller's.
struct RowSelection {
    private let kept: UnsafeMutablePointer<UInt64>
    private var heap: DescendingHeap
    private(set) var keptCount = 0
    /// Sum of the candidates, in the order they were added, and of those kept so far, in the order they were kept.
    private(set) var total = 0.0
    private var keptMass = 0.0
    private(set) var hasNaN = false

    /// - Parameters:
    ///   - kept: a bit per index, all 0.
    ///   - heap: room for as many elements as will be added.
    init(kept: UnsafeMutablePointer<UInt64>, heap: UnsafeMutablePointer<UInt64>) {
        self.kept = kept
        self.heap = DescendingHeap(heap)
    }

    /// Adds a candidate; a forced one is kept at once, and its mass counts.
    mutating func add(_ value: Float, index: Int, isForced: Bool) {
        hasNaN = hasNaN || value.isNaN
        total += Double(value)
        if isForced { keep(value, index) } else { heap.append(value, index: index) }
    }

    /// Keeps what the rule wants, and at least `minimumCount` candidates if there are as many.
    ///
    /// A row that no rule can order, because it holds a NaN or its mass is infinite, keeps every candidate.
    mutating func select(_ rule: BlockSelection.Rule, minimumCount: Int) {
        var keepsAll = hasNaN
        if case .topP = rule { keepsAll = keepsAll || !total.isFinite }
        if keepsAll {
            while heap.count > 0 { keepFirst() }
            return
        }
        heap.heapify()
        while heap.count > 0 && (keptCount < minimumCount || wants(heap.first.value, rule)) { keepFirst() }
    }

    private func wants(_ value: Float, _ rule: BlockSelection.Rule) -> Bool {
        switch rule {
        case .topP(let p): keptMass < p * total && value > 0
        case .topK(let count): keptCount < count
        case .threshold(let threshold): value >= threshold
        }
    }

    private mutating func keepFirst() {
        let (value, index) = heap.first
        heap.removeFirst()
        keep(value, index)
    }

    private mutating func keep(_ value: Float, _ index: Int) {
        kept[index >> 6] |= 1 << UInt64(index & 63)
        keptCount += 1
        keptMass += Double(value)
    }
}
