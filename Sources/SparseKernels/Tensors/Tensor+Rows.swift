internal import KernelInterface

extension Tensor where Element == Float {
    /// Calls `body` with every row of a matrix, which it may change, and returns the results in the order of the rows.
    ///
    /// A task is one row, so results do not depend on the number of threads.
    /// - Parameter work: the number of multiply-adds, or of bytes moved, per element.
    @discardableResult
    mutating func updateRows<Result: Sendable>(
        work: Int = 4, on pool: WorkerPool,
        _ body: @Sendable (_ row: Int, _ elements: UnsafeMutablePointer<Float>) -> Result
    ) -> [Result] {
        let (rows, columns) = (shape[0], shape[1])
        guard columns > 0 else { return [] }
        // Each task writes its own row, and the storage outlives the call.
        nonisolated(unsafe) let base = mutableAddress()
        return pool.map(rows, work: rows * columns * work) { body($0, base + $0 * columns) }
    }

    /// This matrix with the columns of another one, which has as many rows, appended.
    func appendingColumns(of other: Tensor<Float>, on pool: WorkerPool) throws(SparseKernelsError) -> Tensor<Float> {
        let (left, columns, added) = (self, shape[1], other.shape[1])
        var result = try Tensor(zeros: [shape[0], columns + added])
        result.updateRows(on: pool) { row, target in
            left.span.withUnsafeBufferPointer { target.update(from: $0.baseAddress! + row * columns, count: columns) }
            other.span.withUnsafeBufferPointer {
                (target + columns).update(from: $0.baseAddress! + row * added, count: added)
            }
        }
        return result
    }

    /// A copy with the columns multiplied by `factors`.
    func multiplyingColumns(by factors: Tensor<Float>, on pool: WorkerPool) -> Tensor<Float> {
        updatedRows(on: pool) { row, columns in
            factors.span.withUnsafeBufferPointer { s in for k in 0..<columns { row[k] *= s[k] } }
        }
    }

    /// A copy with the columns divided by `divisors`, in `Double`.
    func dividingColumns(by divisors: Tensor<Float>, on pool: WorkerPool) -> Tensor<Float> {
        updatedRows(on: pool) { row, columns in
            divisors.span.withUnsafeBufferPointer { s in
                for k in 0..<columns { row[k] = Float(Double(row[k]) / Double(s[k])) }
            }
        }
    }

    /// A copy with the rows that `body` changes.
    func updatedRows(
        on pool: WorkerPool, _ body: @Sendable (_ row: UnsafeMutablePointer<Float>, _ columns: Int) -> Void
    ) -> Tensor<Float> {
        var result = self
        let columns = shape[1]
        result.updateRows(on: pool) { body($1, columns) }
        return result
    }
}

extension Tensor where Element == Float {
    /// The transposed matrix.
    func transposed(on pool: WorkerPool) throws(SparseKernelsError) -> Tensor<Float> {
        let (source, rows, columns) = (self, shape[0], shape[1])
        var result = try Tensor(zeros: [columns, rows])
        result.updateRows(on: pool) { column, target in
            source.span.withUnsafeBufferPointer { source in
                for row in 0..<rows { target[row] = source[row * columns + column] }
            }
        }
        return result
    }

    /// A copy with every element rounded to a type.
    func rounded(to storage: StorageType, on pool: WorkerPool) -> Tensor<Float> {
        if storage == .float32 { return self }
        return updatedRows(on: pool) { row, columns in for k in 0..<columns { row[k] = storage.rounded(row[k]) } }
    }
}
