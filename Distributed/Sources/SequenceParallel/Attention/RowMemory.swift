internal import Foundation

/// Rows of operands in memory, (head, token), at strides of bytes; the channels of a row are adjacent.
///
/// Its memory belongs to a view or a buffer that the call which made it keeps.
struct RowMemory: @unchecked Sendable {
    /// Row (0, 0).
    let base: UnsafeMutableRawPointer
    let headStride: Int
    let tokenStride: Int

    init(base: UnsafeMutableRawPointer, headStride: Int, tokenStride: Int) {
        (self.base, self.headStride, self.tokenStride) = (base, headStride, tokenStride)
    }

    /// The rows of a view, to be read.
    init<Element: AttentionElement>(reading view: TensorView<Element>) {
        let bytes = MemoryLayout<Element>.stride
        let address =
            view.tokens == 0
            ? nil : view.row(head: 0, token: 0).withUnsafeBufferPointer { UnsafeRawPointer($0.baseAddress) }
        self.init(
            base: UnsafeMutableRawPointer(mutating: address) ?? Self.nowhere, headStride: view.geometry.headStride * bytes,
            tokenStride: view.geometry.tokenStride * bytes)
    }

    /// The rows of a view, to be written.
    init<Element: AttentionElement>(writing view: inout MutableTensorView<Element>) {
        let bytes = MemoryLayout<Element>.stride
        var address: UnsafeMutableRawPointer?
        if view.tokens > 0 {
            var row = view.mutableRow(head: 0, token: 0)
            address = row.withUnsafeMutableBufferPointer { UnsafeMutableRawPointer($0.baseAddress) }
        }
        self.init(
            base: address ?? Self.nowhere, headStride: view.geometry.headStride * bytes,
            tokenStride: view.geometry.tokenStride * bytes)
    }

    /// An address for rows that are not there. Nobody reads or writes it.
    private static var nowhere: UnsafeMutableRawPointer { UnsafeMutableRawPointer(bitPattern: 64)! }

    /// The rows whose head 0 is `head` of these.
    func from(head: Int) -> RowMemory {
        RowMemory(base: base + head * headStride, headStride: headStride, tokenStride: tokenStride)
    }

    // MARK: - Copies

    /// Copies rows of all tokens.
    func copy(to target: RowMemory, heads: Int, tokens: Int, rowBytes: Int, on pool: WorkerPool) {
        let source = self
        pool.forEachRange(of: tokens, workPerItem: heads * rowBytes) { range in
            source.copy(range, to: target, heads: heads, rowBytes: rowBytes)
        }
    }

    private func copy(_ tokens: Range<Int>, to target: RowMemory, heads: Int, rowBytes: Int) {
        let (read, write) = (base + tokens.lowerBound * tokenStride, target.base + tokens.lowerBound * target.tokenStride)
        if tokenStride == rowBytes && target.tokenStride == rowBytes {
            for head in 0..<heads {
                (write + head * target.headStride).copyMemory(
                    from: read + head * headStride, byteCount: tokens.count * rowBytes)
            }
            return
        }
        let isAdjacent = headStride == rowBytes && target.headStride == rowBytes
        let (count, bytes) = isAdjacent ? (1, heads * rowBytes) : (heads, rowBytes)
        for token in 0..<tokens.count {
            for head in 0..<count {
                (write + token * target.tokenStride + head * target.headStride).copyMemory(
                    from: read + token * tokenStride + head * headStride, byteCount: bytes)
            }
        }
    }

    /// Writes rows of floats as rows of another type, rounded to nearest.
    func convert<Element: AttentionElement>(
        to target: RowMemory, _ type: Element.Type, heads: Int, tokens: Int, channels: Int, on pool: WorkerPool
    ) {
        if type == Float.self {
            copy(to: target, heads: heads, tokens: tokens, rowBytes: channels * MemoryLayout<Float>.stride, on: pool)
            return
        }
        let source = self
        pool.forEachRange(of: tokens, workPerItem: heads * channels * 6) { range in
            for token in range {
                for head in 0..<heads {
                    let read = (source.base + token * source.tokenStride + head * source.headStride)
                        .assumingMemoryBound(to: Float.self)
                    let write = target.base + token * target.tokenStride + head * target.headStride
                    // Loops over concrete types: callers in other modules have no code of their own for theirs.
                    if type == BFloat16.self {
                        Self.roundToBFloat16(read, to: write.assumingMemoryBound(to: UInt16.self), channels)
                        continue
                    }
                    #if !(os(macOS) && arch(x86_64))
                        if type == Float16.self {
                            Self.round(read, to: write.assumingMemoryBound(to: Float16.self), channels)
                            continue
                        }
                    #endif
                    Self.round(read, to: write.assumingMemoryBound(to: Element.self), channels)
                }
            }
        }
    }

    /// The bits of ``BFloat16``, without a call or a branch per element.
    private static func roundToBFloat16(_ source: UnsafePointer<Float>, to target: UnsafeMutablePointer<UInt16>, _ count: Int) {
        for index in 0..<count {
            let bits = source[index].bitPattern
            let rounded = (bits &+ 0x7fff &+ ((bits >> 16) & 1)) >> 16
            let isNaN = bits & 0x7fff_ffff > 0x7f80_0000
            target[index] = UInt16(truncatingIfNeeded: isNaN ? bits >> 16 | 0x40 : rounded)
        }
    }

    @inline(__always)
    private static func round<Element: AttentionElement>(
        _ source: UnsafePointer<Float>, to target: UnsafeMutablePointer<Element>, _ count: Int
    ) {
        for index in 0..<count { target[index] = Element(source[index]) }
    }
}
