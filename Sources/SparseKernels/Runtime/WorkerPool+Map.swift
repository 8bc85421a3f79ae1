extension WorkerPool {
    /// Computes `transform(0)` … `transform(count − 1)` on the pool, for plans, masks and indices of many heads.
    ///
    /// Unlike tasks of operators, `transform` may allocate.
    /// - Parameter work: as for `run`.
    package func map<Element: Sendable>(
        _ count: Int, work: Int, _ transform: @Sendable (Int) -> Element
    ) -> [Element] {
        [Element](unsafeUninitializedCapacity: count) { buffer, initializedCount in
            initializedCount = count
            guard let base = buffer.baseAddress else { return }
            withoutActuallyEscaping(transform) { transform in
                run(MapCall(elements: base, transform: transform), tasks: count, work: work)
            }
        }
    }
}

private struct MapCall<Element>: PoolCall {
    let elements: UnsafeMutablePointer<Element>
    let transform: @Sendable (Int) -> Element

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        (elements + task).initialize(to: transform(task))
    }
}
