// Matrices of nibbles in 32-bit words, as in AWQ and GPTQ files: transposed, with K down the rows, and eight nibbles per word,
// nibble i in bits 4i…4i + 3.

/// The order of eight neighbours in the nibbles of a word.
enum NibbleOrder {
    case sequential
    /// The order in which AWQ's GPU kernel converts pairs to half precision.
    case awq

    /// The element in each of the nibbles 0…7.
    var elements: (Int, Int, Int, Int, Int, Int, Int, Int) {
        self == .awq ? (0, 2, 4, 6, 1, 3, 5, 7) : (0, 1, 2, 3, 4, 5, 6, 7)
    }
}

extension Tensor<Int32> {
    /// Unpacks words `[depth, columns / 8]` whose nibbles are neighbouring columns to integers 0…15 `[columns, depth]`.
    func transposedColumnNibbles(_ order: NibbleOrder, on pool: WorkerPool) throws(SparseKernelsError) -> Tensor<Int8> {
        let (depth, words) = (shape[0], shape[1])
        var integers = try Tensor<Int8>(zeros: [8 * words, depth])
        nonisolated(unsafe) let (source, target) = (address, integers.mutableAddress())
        forEachLine(of: words, depth: depth, on: pool) { row, word in
            let bits = UInt32(bitPattern: source[row * words + word])
            order.forEach { nibble, element in
                target[(8 * word + element) * depth + row] = Int8(bits >> UInt32(4 * nibble) & 15)
            }
        }
        return integers
    }

    /// Unpacks words `[depth / 8, columns]` whose nibbles are neighbours down the column to integers 0…15 `[columns, depth]`.
    func transposedRowNibbles(on pool: WorkerPool) throws(SparseKernelsError) -> Tensor<Int8> {
        let (words, columns) = (shape[0], shape[1])
        var integers = try Tensor<Int8>(zeros: [columns, 8 * words])
        nonisolated(unsafe) let (source, target) = (address, integers.mutableAddress())
        forEachLine(of: columns, depth: words, on: pool) { row, column in
            let bits = UInt32(bitPattern: source[row * columns + column])
            for nibble in 0..<8 {
                target[8 * (column * words + row) + nibble] = Int8(bits >> UInt32(4 * nibble) & 15)
            }
        }
        return integers
    }
}

extension Tensor<Int8> {
    /// Packs integers `[columns, depth]` to words `[depth, columns / 8]`: the inverse of `transposedColumnNibbles`.
    func columnNibbles(_ order: NibbleOrder, on pool: WorkerPool) throws(SparseKernelsError) -> Tensor<Int32> {
        let (words, depth) = (shape[0] / 8, shape[1])
        var result = try Tensor<Int32>(zeros: [depth, words])
        nonisolated(unsafe) let (source, target) = (address, result.mutableAddress())
        forEachLine(of: words, depth: depth, on: pool) { row, word in
            var bits: UInt32 = 0
            order.forEach { nibble, element in
                bits |= UInt32(source[(8 * word + element) * depth + row]) << UInt32(4 * nibble)
            }
            target[row * words + word] = Int32(bitPattern: bits)
        }
        return result
    }

    /// Packs integers `[columns, depth]` to words `[depth / 8, columns]`: the inverse of `transposedRowNibbles`.
    func rowNibbles(on pool: WorkerPool) throws(SparseKernelsError) -> Tensor<Int32> {
        let (columns, words) = (shape[0], shape[1] / 8)
        var result = try Tensor<Int32>(zeros: [words, columns])
        nonisolated(unsafe) let (source, target) = (address, result.mutableAddress())
        forEachLine(of: columns, depth: words, on: pool) { row, column in
            var bits: UInt32 = 0
            for nibble in 0..<8 {
                bits |= UInt32(source[8 * (column * words + row) + nibble]) << UInt32(4 * nibble)
            }
            target[row * columns + column] = Int32(bitPattern: bits)
        }
        return result
    }
}

extension NibbleOrder {
    @inline(__always)
    fileprivate func forEach(_ body: (_ nibble: Int, _ element: Int) -> Void) {
        let elements = elements
        body(0, elements.0)
        body(1, elements.1)
        body(2, elements.2)
        body(3, elements.3)
        body(4, elements.4)
        body(5, elements.5)
        body(6, elements.6)
        body(7, elements.7)
    }
}

/// Calls `body` for every word of a matrix `[depth, columns]`, down the matrix in stripes of the 16 words of a cache line.
@inline(__always)
private func forEachLine(
    of columns: Int, depth: Int, on pool: WorkerPool, _ body: @Sendable (_ row: Int, _ column: Int) -> Void
) {
    let line = 16
    pool.forEachRowRange((columns + line - 1) / line, workPerRow: 8 * line * depth) { stripes, _ in
        for stripe in stripes {
            for row in 0..<depth {
                for column in stripe * line..<min(columns, (stripe + 1) * line) { body(row, column) }
            }
        }
    }
}
