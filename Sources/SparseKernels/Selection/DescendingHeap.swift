/// A heap of numbers in descending order, equal ones by lower index. Only the numbers that are taken out are sorted.
///
/// Value and index form one 64-bit integer that has this order. The caller owns the memory. Selections of façades use it, too, and
/// are to cost as much there as in this module: hence `@inlinable`.
///
/// - Complexity: O(n) for `heapify`, O(log n) for `removeFirst`.
package struct DescendingHeap {
    @usableFromInline let keys: UnsafeMutablePointer<UInt64>
    package var count = 0

    /// - Parameter memory: memory for as many elements as will be appended.
    @inlinable package init(_ memory: UnsafeMutablePointer<UInt64>) { keys = memory }

    /// Adds an element. The heap is ordered after `heapify`. The value must not be NaN, and the index must be below 2³².
    @inlinable package mutating func append(_ value: Float, index: Int) {
        // The sum turns −0 into +0, so that the two are equal. Bit patterns of negative numbers ascend with the magnitude.
        let bits = (value + 0).bitPattern
        let ordered = bits >> 31 == 0 ? bits | 1 << 31 : ~bits
        keys[count] = UInt64(ordered) << 32 | UInt64(~UInt32(truncatingIfNeeded: index))
        count += 1
    }

    @inlinable package mutating func heapify() {
        for parent in stride(from: count / 2 - 1, through: 0, by: -1) { siftDown(parent) }
    }

    /// The largest element. The heap must not be empty.
    @inlinable package var first: (value: Float, index: Int) {
        let ordered = UInt32(truncatingIfNeeded: keys[0] >> 32)
        let bits = ordered >> 31 == 1 ? ordered & ~(1 << 31) : ~ordered
        return (Float(bitPattern: bits), Int(~UInt32(truncatingIfNeeded: keys[0])))
    }

    /// Removes the largest element.
    @inlinable package mutating func removeFirst() {
        count -= 1
        keys[0] = keys[count]
        siftDown(0)
    }

    mutating func removeAll() { count = 0 }

    @inlinable func siftDown(_ start: Int) {
        if start >= count { return }
        let key = keys[start]
        var parent = start
        while true {
            var child = 2 * parent + 1
            if child >= count { break }
            if child + 1 < count && keys[child + 1] > keys[child] { child += 1 }
            if keys[child] <= key { break }
            keys[parent] = keys[child]
            parent = child
        }
        keys[parent] = key
    }
}
