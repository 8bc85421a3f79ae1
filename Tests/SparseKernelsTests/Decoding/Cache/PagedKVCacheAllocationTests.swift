#if os(Linux) && canImport(Glibc)
    import SparseKernels
    import SparseKernelsReference
    import TestSupport
    import Testing

    /// Each test runs in a process of its own, because counting overwrites the allocation functions of the whole process.
    @Suite("Paged KV cache: allocations")
    struct PagedKVCacheAllocationTests {
        @Test("appending a token to an existing page allocates nothing")
        func oneToken() async {
            await #expect(processExitsWith: .success) {
                let caches = try SmallCache.all.map {
                    try PagedKVCache($0.configuration(layers: 1, pageSize: 128, pageCapacity: 2))
                }
                let key = try Tensor<Float16>.normal([2, 1, 9], seed: 1)
                let value = try Tensor<Float>.normal([2, 1, 5], seed: 2)
                #expect(AllocationCounter.install() > 0)
                for cache in caches {
                    let sequence = cache.makeSequence()
                    var allocated = 0
                    for token in 0..<128 {
                        let (k, v) = try (key.view(), value.view())
                        let before = AllocationCounter.count
                        try cache.append(key: k, value: v, to: sequence, on: .serial)
                        // The first two calls also take the page and fill the caches of the Swift runtime.
                        if token >= 2 { allocated += AllocationCounter.count - before }
                    }
                    for token in 0..<20 {
                        let (k, v) = try (key.view(), value.view())
                        let before = AllocationCounter.count
                        try cache.overwrite(key: k, value: v, in: sequence, from: token, on: .serial)
                        if token >= 2 { allocated += AllocationCounter.count - before }
                    }
                    #expect(allocated == 0, "\(cache.configuration.keyFormat): \(allocated) allocations in 144 calls")
                }
            }
        }
    }
#endif
