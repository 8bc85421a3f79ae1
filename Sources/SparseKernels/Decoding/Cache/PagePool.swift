/// Which pages of a cache are in use, and by how many page tables.
///
/// Pages that were never handed out are not listed, so this costs memory for the most pages that were ever in use at the same
/// time and not for the capacity.
struct PagePool {
    let capacity: Int
    /// How many page tables hold a page, for pages that were ever handed out; 0: it was given back.
    private(set) var referenceCounts: [Int32] = []
    /// Pages that were given back. The last one goes out first, because its memory is the most likely to be in a cache.
    private var returned: [Int32] = []

    init(capacity: Int) { self.capacity = capacity }

    /// Pages 0..<referenceCounts.count in use, the rest free.
    /// - Parameter referenceCounts: at least 1 each, at most `capacity` of them.
    init(capacity: Int, referenceCounts: [Int32]) {
        self.capacity = capacity
        self.referenceCounts = referenceCounts
    }

    var usedCount: Int { referenceCounts.count - returned.count }
    var freeCount: Int { capacity - usedCount }

    func isShared(_ page: Int32) -> Bool { referenceCounts[Int(page)] > 1 }

    /// A page that no table holds, which is then held once. There must be a free one.
    mutating func take() -> Int32 {
        precondition(freeCount > 0, "no page is free")
        if let page = returned.popLast() {
            referenceCounts[Int(page)] = 1
            return page
        }
        referenceCounts.append(1)
        return Int32(referenceCounts.count - 1)
    }

    /// Another table holds the page.
    mutating func retain(_ page: Int32) { referenceCounts[Int(page)] += 1 }

    /// A table no longer holds the page.
    mutating func release(_ page: Int32) {
        referenceCounts[Int(page)] -= 1
        if referenceCounts[Int(page)] == 0 { returned.append(page) }
    }
}
