extension WorkerPool {
    /// `transform(0)` … `transform(count − 1)`, computed by the pool: for plans, masks and indices of many heads.
    ///
    /// Unlike operators' tasks it may allocate.
    /// - Parameter work: as for `run`.
    package func map<Element: Sendable>(
        _ count: Int, work: Int, _ transform: @Sendable (Int) -> Element
    ) -> [Element] {
        [Element](unsafeUninitializedCapacity: count) { buffer, initializedCount in
            initializedCount = count
            guard let base = buffer.baseAddress else { return }
            withoutActuallyEscaping(transform) { transform in
                withUnsafePointer(to: MapCall(elements: base, transform: transform)) { call in
                    run(tasks: count, work: work, scratchByteCount: 0, context: call) { context, task, _ in
                        let call = context.assumingMemoryBound(to: MapCall<Element>.self).pointee
                        (call.elements + task).initialize(to: call.transform(task))
                    }
                }
            }
        }
    }
}

private struct MapCall<Element> {
    let elements: UnsafeMutablePointer<Element>
    let transform: @Sendable (Int) -> Element
}
