/// Counts how many page tables use each page of a cache.
///
/// Pages that were never handed out are not listed. Memory is therefore proportional to the largest number of pages that were
/// ever in use at the same time, not to the capacity.
struct PagePool {
    let capacity: Int
    /// The number of page tables that hold each page that was ever handed out; 0 means that it was returned.
    private(set) var referenceCounts: [Int32] = []
    /// Pages that were returned. The last one is handed out first, because its memory is the most likely to be in a cache.
    private var returned: [Int32] = []

    init(capacity: Int) { self.capacity = capacity }

    /// A pool with the pages 0..<referenceCounts.count in use and the rest free.
    /// - Parameter referenceCounts: at most `capacity` numbers, each at least 1.
    init(capacity: Int, referenceCounts: [Int32]) {
        self.capacity = capacity
        self.referenceCounts = referenceCounts
    }

    var usedCount: Int { referenceCounts.count - returned.count }
    var freeCount: Int { capacity - usedCount }

    func isShared(_ page: Int32) -> Bool { referenceCounts[Int(page)] > 1 }

    /// Returns a free page and counts one table for it. There must be a free page.
    mutating func take() -> Int32 {
        precondition(freeCount > 0, "no page is free")
        if let page = returned.popLast() {
            referenceCounts[Int(page)] = 1
            return page
        }
        referenceCounts.append(1)
        return Int32(referenceCounts.count - 1)
    }

    /// Counts one more table that holds the page.
    mutating func retain(_ page: Int32) { referenceCounts[Int(page)] += 1 }

    /// Counts one table less, and returns the page when it was the last.
    mutating func release(_ page: Int32) {
        referenceCounts[Int(page)] -= 1
        if referenceCounts[Int(page)] == 0 { returned.append(page) }
    }
}
