// The largest of some keys in descending order: the last step of the statistics of logits.

public import KernelInterface

extension Kernels {
    public static func rankLogits(_ arguments: UnsafePointer<RankLogitsArguments>) {
        let args = arguments.pointee
        if args.count > args.kept { partitionLargest(args.keys, count: args.count, kept: args.kept) }
        sortDescending(args.keys, count: args.kept)
        for i in 0..<args.kept {
            args.values[i] = LogitKey.value(args.keys[i])
            args.indices[i] = LogitKey.index(args.keys[i])
        }
    }
}

/// Moves the `kept` largest keys to the front, in no order. Keys differ from each other.
///
/// Quickselect with the median of three as pivot. After as many rounds as halvings would take, four times over, it sorts instead, so
/// that no order of keys makes it quadratic.
@inline(never)
func partitionLargest(_ keys: UnsafeMutablePointer<UInt64>, count: Int, kept: Int) {
    var (low, high) = (0, count - 1)
    var rounds = 4 * (64 - count.leadingZeroBitCount)
    while low < high {
        if rounds == 0 {
            sortDescending(keys + low, count: high - low + 1)
            return
        }
        rounds -= 1
        let pivot = median(keys[low], keys[low + (high - low) / 2], keys[high])
        var (i, j) = (low, high)
        while i <= j {
            while keys[i] > pivot { i += 1 }
            while keys[j] < pivot { j -= 1 }
            if i <= j {
                let key = keys[i]
                keys[i] = keys[j]
                keys[j] = key
                i += 1
                j -= 1
            }
        }
        // low…j are at least the pivot, i…high at most, and what is between is equal to it.
        if kept <= j {
            high = j
        } else if kept >= i + 1 {
            low = i
        } else {
            return
        }
    }
}

@_transparent
private func median(_ a: UInt64, _ b: UInt64, _ c: UInt64) -> UInt64 {
    let (low, high) = a < b ? (a, b) : (b, a)
    return c < low ? low : c > high ? high : c
}

/// Heapsort: the smallest key goes to the end first.
@inline(never)
func sortDescending(_ keys: UnsafeMutablePointer<UInt64>, count: Int) {
    var parent = count / 2
    while parent > 0 {
        parent -= 1
        siftDown(keys, from: parent, count: count)
    }
    var end = count
    while end > 1 {
        end -= 1
        let key = keys[0]
        keys[0] = keys[end]
        keys[end] = key
        siftDown(keys, from: 0, count: end)
    }
}

/// Restores a heap whose smallest key is first.
@_transparent
private func siftDown(_ keys: UnsafeMutablePointer<UInt64>, from start: Int, count: Int) {
    let key = keys[start]
    var parent = start
    while true {
        var child = 2 * parent + 1
        if child >= count { break }
        if child + 1 < count && keys[child + 1] < keys[child] { child += 1 }
        if keys[child] >= key { break }
        keys[parent] = keys[child]
        parent = child
    }
    keys[parent] = key
}
