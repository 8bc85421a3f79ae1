internal import KernelInterface

/// What weights of whole bytes differ in from quiet ones: w = quiet + remainder.
///
/// Two adjacent weights are quiet when products of theirs with unsigned bytes can be added in 16 bits, that is when neither their
/// positive nor their negative sum exceeds 127 or 128 in magnitude. Where they are not, the second one is limited, and the rest is the
/// remainder. A word is four adjacent channels of an output; MultiplyWhole.swift says what words with remainders cost.
struct WeightRemainders: Sendable {
    /// The most words with remainders among all words of the weight. With these, products take an eighth longer than without any, and
    /// the packed weight is an eighth larger. Products without quiet weights would take half as long again.
    static let largestShare = 0.125

    /// The words lane by lane, as `QuantizedProductArguments` has them.
    private let words: TensorStorage
    /// [lanes + 1].
    private let lanes: TensorStorage
    /// The number of words.
    let count: Int

    var pointer: UnsafePointer<UInt32> { UnsafePointer(words.pointer.assumingMemoryBound(to: UInt32.self)) }

    /// Where the words of the output feature `column` begin, followed by where those of the next ones do.
    func starts(column: Int) -> UnsafePointer<Int32> {
        UnsafePointer(lanes.pointer.assumingMemoryBound(to: Int32.self)) + column
    }

    var byteCount: Int { words.byteCount + lanes.byteCount }

    /// Finds the remainders of packed codes; nil for too many.
    init?(of codes: TensorStorage, layout: PackedLayout, on pool: WorkerPool) {
        lanes = TensorStorage(byteCount: (layout.lanes + 1) * 4)
        let starts = lanes.pointer.assumingMemoryBound(to: Int32.self)
        let bytes = UnsafePointer(codes.pointer.assumingMemoryBound(to: Int8.self))
        Search(codes: bytes, layout: layout, starts: starts, words: nil).run(on: pool)
        // Counts become sums.
        var sum: Int32 = 0
        for lane in 0..<layout.lanes {
            (starts[lane], sum) = (sum, sum + starts[lane])
        }
        starts[layout.lanes] = sum
        count = Int(sum)
        words = TensorStorage(byteCount: max(count, 1) * 4)
        if Double(count) > Self.largestShare * Double(layout.codeByteCount / 4) { return nil }
        Search(codes: bytes, layout: layout, starts: starts, words: words.pointer.assumingMemoryBound(to: UInt32.self))
            .run(on: pool)
    }

    /// The part of the second of two adjacent weights that makes them loud, 0 for quiet ones.
    static func remainder(_ first: Int, _ second: Int) -> Int {
        second - min(max(second, -128 - min(first, 0)), 127 - max(first, 0))
    }

    /// Counts the words of each lane, or writes them. A task is one panel.
    private struct Search: PoolCall {
        let codes: UnsafePointer<Int8>
        let layout: PackedLayout
        let starts: UnsafeMutablePointer<Int32>
        let words: UnsafeMutablePointer<UInt32>?

        func run(on pool: WorkerPool) { pool.run(self, tasks: layout.panels, work: layout.codeByteCount) }

        func perform(task panel: Int, scratch: UnsafeMutableRawPointer) {
            let (first, width) = (panel * layout.panelWidth, layout.lanes(ofPanel: panel))
            let base = codes + first * layout.paddedInFeatures
            for lane in 0..<width {
                var count: Int32 = 0
                for word in 0..<layout.paddedInFeatures / 4 {
                    let bytes = base + (word * width + lane) * 4
                    let second = WeightRemainders.remainder(Int(bytes[0]), Int(bytes[1]))
                    let fourth = WeightRemainders.remainder(Int(bytes[2]), Int(bytes[3]))
                    if second == 0 && fourth == 0 { continue }
                    if let words {
                        words[Int(starts[first + lane] + count)] =
                            UInt32(word) << 16 | UInt32(UInt8(truncatingIfNeeded: fourth)) << 8
                            | UInt32(UInt8(truncatingIfNeeded: second))
                    }
                    count += 1
                }
                if words == nil { starts[first + lane] = count }
            }
        }
    }
}
