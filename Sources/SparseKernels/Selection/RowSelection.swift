/// The selection of one row: after candidates and forced elements are added, a rule keeps the best of them.
///
/// Kept elements are marked in a row of bits that the caller cleared. The caller owns the memory of the bits and of the heap.
struct RowSelection {
    private let kept: UnsafeMutablePointer<UInt64>
    private var heap: DescendingHeap
    private(set) var keptCount = 0
    /// The sum of the candidates in order of adding; `keptMass` sums the kept ones in order of keeping.
    private(set) var total = 0.0
    private var keptMass = 0.0
    private(set) var hasNaN = false

    /// - Parameters:
    ///   - kept: one bit per index, all 0.
    ///   - heap: memory for as many elements as will be added.
    init(kept: UnsafeMutablePointer<UInt64>, heap: UnsafeMutablePointer<UInt64>) {
        self.kept = kept
        self.heap = DescendingHeap(heap)
    }

    /// Adds a candidate. A forced one is kept at once, and its mass counts.
    mutating func add(_ value: Float, index: Int, isForced: Bool) {
        hasNaN = hasNaN || value.isNaN
        total += Double(value)
        if isForced { keep(value, index) } else { heap.append(value, index: index) }
    }

    /// Keeps the elements that the rule selects, and at least `minimumCount` candidates if there are as many.
    ///
    /// A row that has a NaN, or infinite mass under `.topP`, keeps every candidate, because no rule can order it.
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
