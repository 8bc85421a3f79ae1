import SparseKernels
import TestSupport
import Testing

/// Every error leaves the cache unchanged.
@Suite("Paged KV cache: errors")
struct PagedKVCacheErrorsTests {
    private static let bounds = SmallCache.all[0]
    private static let alone = SmallCache.all[2]

    private func model(_ small: SmallCache, tokens: Int, pageCapacity: Int) throws -> PagedKVCacheModel {
        let model = try PagedKVCacheModel(small.configuration(pageCapacity: pageCapacity))
        let index = model.make()
        try model.append(tokens, to: index)
        return model
    }

    // MARK: - Capacity

    @Test("no page is free", arguments: SmallCache.all)
    func exhausted(_ small: SmallCache) throws {
        // Two full pages and one of 7 tokens are all shared.
        let model = try model(small, tokens: 39, pageCapacity: 3)
        let child = try model.fork(0)
        let empty = model.make()
        #expect(model.cache.freePageCount == 0)
        for layer in 0..<2 {
            try model.expectUnchanged(.capacityExceeded, "pageCapacity") { try model.append(1, to: child, layer: layer) }
            try model.expectUnchanged(.capacityExceeded, "pageCapacity") { try model.append(30, to: 0, layer: layer) }
            try model.expectUnchanged(.capacityExceeded, "pageCapacity") { try model.append(1, to: empty, layer: layer) }
            try model.expectUnchanged(.capacityExceeded, "pageCapacity") {
                try model.overwrite(3..<4, of: child, layer: layer)
            }
        }
        // Operations that need no page still succeed.
        try model.truncate(child, to: 32)
        try model.append(5, to: 0)
        try model.check("after errors")
    }

    @Test("new pages and copies count together")
    func together() throws {
        let model = try model(Self.bounds, tokens: 23, pageCapacity: 3)
        let child = try model.fork(0)
        // This needs a copy of the second page, and a third page.
        try model.expectUnchanged(.capacityExceeded, "pageCapacity") { try model.append(10, to: child, layer: 0) }
        try model.append(9, to: child, layer: 0)
        try model.check("the copy alone fits")
    }

    @Test("an overwrite fails as a whole when copies of two shared pages do not fit")
    func twoCopies() throws {
        let model = try model(Self.alone, tokens: 30, pageCapacity: 3)
        let child = try model.fork(0)
        try model.expectUnchanged(.capacityExceeded, "pageCapacity") { try model.overwrite(10..<20, of: child, layer: 1) }
        try model.overwrite(16..<20, of: child, layer: 1)
        try model.check("one copy fits")
    }

    @Test("a cut through a logical page needs a page when the page is shared")
    func cuts() throws {
        let model = try model(Self.bounds, tokens: 32, pageCapacity: 2)
        try model.expectUnchanged(.capacityExceeded, "pageCapacity") { try model.fork(0, at: 25) }
        let child = try model.fork(0)
        try model.expectUnchanged(.capacityExceeded, "pageCapacity") { try model.truncate(0, to: 25) }
        try model.truncate(0, to: 24)
        try model.free(child)
        try model.truncate(0, to: 23)
        try model.check("23 tokens")
    }

    @Test("a truncation may use the page that it frees")
    func freesFirst() throws {
        let model = try model(Self.bounds, tokens: 32, pageCapacity: 3)
        try model.fork(0)
        try model.append(5, to: 0)
        #expect(model.cache.freePageCount == 0)
        try model.truncate(0, to: 25)
        try model.check("25 tokens")
        #expect(model.cache.freePageCount == 0)
    }

    @Test("a pool that the system does not reserve")
    func addressSpace() throws {
        // These are 2⁴⁵ bytes each, of the 2⁴⁷ of a process.
        let configuration = try KVCacheConfiguration(
            kvHeads: 16, headDim: 256, pageSize: 128, pageCapacity: 1 << 23, format: .float32)
        #expect(configuration.pageCapacity * configuration.bytesPerPage == 1 << 45)
        let error = #expect(throws: SparseKernelsError.self) {
            var caches: [PagedKVCache] = []
            for _ in 0..<8 { caches.append(try PagedKVCache(configuration)) }
        }
        #expect(error?.code == .capacityExceeded && error?.argument == "pageCapacity")
    }

    // MARK: - Names and ranges

    @Test("a freed sequence is unknown to every call")
    func freed() throws {
        let model = try model(Self.bounds, tokens: 20, pageCapacity: 4)
        let gone = try model.cache.fork(model.sequences[0].id)
        try model.cache.free(gone)
        let (keys, values) = (try model.keys([1]), try model.values([1]))
        let cache = model.cache
        let calls: [() throws -> Void] = [
            { try cache.append(key: keys.view(), value: values.view(), to: gone) },
            { try cache.overwrite(key: keys.view(), value: values.view(), in: gone, from: 0) },
            { try cache.truncate(gone, to: 0) }, { _ = try cache.fork(gone) }, { try cache.discard(gone, tokens: 0..<16) },
            { try cache.free(gone) }, { _ = try cache.length(of: gone) }, { _ = try cache.pageTable(of: gone) },
            { _ = try cache.keys(of: gone) }, { _ = try cache.values(of: gone) },
        ]
        for call in calls { try model.expectUnchanged(.unknownSequence, "sequence", call) }
    }

    @Test("lengths, positions, ranges and layers out of their domain are errors")
    func ranges() throws {
        let model = try model(Self.bounds, tokens: 20, pageCapacity: 4)
        try model.append(3, to: 0, layer: 1)
        let (id, cache) = (model.sequences[0].id, model.cache)
        for length in [-1, 24, .max, .min] {
            try model.expectUnchanged(.invalidArgument, "length") { try cache.truncate(id, to: length) }
            try model.expectUnchanged(.invalidArgument, "length") { _ = try cache.fork(id, at: length) }
        }
        // Only tokens of every layer can be discarded.
        for range in [-1..<16, 0..<21, 30..<40, 0..<Int.max] {
            try model.expectUnchanged(.invalidArgument, "tokens") { try cache.discard(id, tokens: range) }
            try model.expectUnchanged(.invalidArgument, "tokens") { _ = try cache.keys(of: id, tokens: range) }
        }
        let (keys, values) = (try model.keys([1, 2]), try model.values([1, 2]))
        for position in [-1, 19, .max, .min] {
            try model.expectUnchanged(.invalidArgument, "position") {
                try cache.overwrite(key: keys.view(), value: values.view(), in: id, from: position)
            }
        }
        for layer in [-1, 2, .max] {
            try model.expectUnchanged(.invalidArgument, "layer") {
                try cache.append(key: keys.view(), value: values.view(), to: id, layer: layer)
            }
            try model.expectUnchanged(.invalidArgument, "layer") {
                try cache.overwrite(key: keys.view(), value: values.view(), in: id, from: 0, layer: layer)
            }
            try model.expectUnchanged(.invalidArgument, "layer") { _ = try cache.length(of: id, layer: layer) }
            try model.expectUnchanged(.invalidArgument, "layer") { _ = try cache.values(of: id, layer: layer) }
        }
    }

    @Test("more tokens than there are cannot be overwritten")
    func tooMany() throws {
        let model = try model(Self.bounds, tokens: 1, pageCapacity: 4)
        let (keys, values) = (try model.keys([1, 2]), try model.values([1, 2]))
        try model.expectUnchanged(.invalidArgument, "position") {
            try model.cache.overwrite(key: keys.view(), value: values.view(), in: model.sequences[0].id, from: 0)
        }
    }

    @Test("discarded tokens cannot be read, overwritten or cut through")
    func holes() throws {
        let model = try model(Self.bounds, tokens: 60, pageCapacity: 4)
        try model.discard(16..<48, of: 0)
        let (id, cache) = (model.sequences[0].id, model.cache)
        let (keys, values) = (try model.keys([1, 2]), try model.values([1, 2]))
        for length in [17, 31, 33, 47] {
            try model.expectUnchanged(.invalidArgument, "length") { try cache.truncate(id, to: length) }
            try model.expectUnchanged(.invalidArgument, "length") { _ = try cache.fork(id, at: length) }
        }
        for position in [15, 16, 30, 47] {
            try model.expectUnchanged(.invalidArgument, "position") {
                try cache.overwrite(key: keys.view(), value: values.view(), in: id, from: position)
            }
            try model.expectUnchanged(.invalidArgument, "tokens") {
                _ = try cache.values(of: id, tokens: position..<position + 2)
            }
        }
        try model.overwrite(14..<16, of: 0, layer: 0)
        try model.overwrite(48..<50, of: 0, layer: 1)
        try model.check("around the hole")
    }

    @Test("operands of other extents are errors")
    func shapes() throws {
        let model = try model(Self.bounds, tokens: 20, pageCapacity: 4)
        let shapes: [(String, [Int], [Int])] = [
            ("key", [1, 3, 9], [2, 3, 5]), ("key", [2, 3, 5], [2, 3, 5]), ("value", [2, 3, 9], [3, 3, 5]),
            ("value", [2, 3, 9], [2, 3, 9]), ("value.tokens", [2, 3, 9], [2, 4, 5]),
        ]
        for (argument, keyShape, valueShape) in shapes {
            let (keys, values) = (try Tensor<Float>(zeros: keyShape), try Tensor<Float>(zeros: valueShape))
            try model.expectUnchanged(.invalidShape, argument) {
                try model.cache.append(key: keys.view(), value: values.view(), to: model.sequences[0].id)
            }
            try model.expectUnchanged(.invalidShape, argument) {
                try model.cache.overwrite(key: keys.view(), value: values.view(), in: model.sequences[0].id, from: 0)
            }
        }
    }

    // MARK: - Elements

    /// An element, and whether it is in the range of half precision.
    private static let elements: [(Float, Bool)] = [
        (.nan, false), (.infinity, false), (-.infinity, false), (65505, false), (-1e30, false), (65504, true), (-65504, true),
    ]

    @Test("elements beyond half precision are refused where scales, bounds or estimates need it", arguments: SmallCache.all)
    func elements(_ small: SmallCache) throws {
        let quantized = [KVFormat.int8, .int4]
        let boundsKeys = quantized.contains(small.format) || small.metadata != nil || small.estimates
        let boundsValues = quantized.contains(small.valueFormat ?? small.format)
        for (element, fits) in Self.elements {
            for isKey in [true, false] {
                let model = try model(small, tokens: 20, pageCapacity: 4)
                var (keys, values) = (try model.keys([1, 2, 3]), try model.values([1, 2, 3]))
                if isKey { keys[flat: 40] = element } else { values[flat: 29] = element }
                let (id, cache) = (model.sequences[0].id, model.cache)
                if !fits && (isKey ? boundsKeys : boundsValues) {
                    let argument = isKey ? "key" : "value"
                    try model.expectUnchanged(.invalidArgument, argument) {
                        try cache.append(key: keys.view(), value: values.view(), to: id)
                    }
                    try model.expectUnchanged(.invalidArgument, argument) {
                        try cache.overwrite(key: keys.view(), value: values.view(), in: id, from: 4)
                    }
                } else {
                    try cache.append(key: keys.view(), value: values.view(), to: id)
                    let read = try (isKey ? cache.keys(of: id, tokens: 20..<23) : cache.values(of: id, tokens: 20..<23))
                    // Floating-point formats follow IEEE; codes are near the value, and never NaN.
                    #expect(read.elements.contains { $0.isNaN } == element.isNaN)
                }
            }
        }
    }

    @Test("elements of 16 bits are looked at as they are")
    func narrowElements() throws {
        let cache = try PagedKVCache(SmallCache.all[4].configuration(layers: 1))
        let sequence = cache.makeSequence()
        let values = try Tensor<Float>(zeros: [2, 1, 5])
        func expect<Key: AttentionElement>(_ keys: Tensor<Key>, fits: Bool) {
            let place = refusal { () throws(SparseKernelsError) in
                try cache.append(key: keys.view(), value: values.view(), to: sequence)
            }?.actual
            #expect(fits ? place == nil : place?.hasSuffix("at (1, 0, 2)") == true)
        }
        for (bits, fits) in [(UInt16(0x7bff), true), (0xfbff, true), (0x7c00, false), (0xfc00, false), (0x7e00, false)] {
            expect(try Tensor<Float16>([2, 1, 9]) { Float16(bitPattern: $0 == 11 ? bits : 0) }, fits: fits)
        }
        // 65280 and 65536 are neighbours in bfloat16.
        for (bits, fits) in [(UInt16(0x477f), true), (0xc77f, true), (0x4780, false), (0x7f80, false), (0xffc0, false)] {
            expect(try Tensor<BFloat16>([2, 1, 9]) { BFloat16(bitPattern: $0 == 11 ? bits : 0) }, fits: fits)
        }
        #expect(try cache.length(of: sequence) == 4)
    }

    private func refusal(_ body: () throws(SparseKernelsError) -> Void) -> SparseKernelsError? {
        do throws(SparseKernelsError) {
            try body()
            return nil
        } catch {
            return error
        }
    }

    @Test("a step for several sequences: wrong counts, a sequence twice, and too few pages change nothing")
    func steps() throws {
        let cache = try PagedKVCache(KVCacheConfiguration(kvHeads: 1, headDim: 2, pageSize: 16, pageCapacity: 3))
        let row = try Tensor<Float>(zeros: [1, 16, 2])
        let first = cache.makeSequence()
        try cache.append(key: row, value: row, to: first)
        let (second, third) = (cache.makeSequence(), cache.makeSequence())
        let two = try Tensor<Float>(zeros: [1, 2, 2])
        let three = try Tensor<Float>(zeros: [1, 3, 2])
        expectError(.invalidShape, "key.tokens") { try cache.append(key: three, value: three, toEach: [first, second]) }
        expectError(.invalidArgument, "sequences") { try cache.append(key: two, value: two, toEach: [first, first]) }
        expectError(.invalidArgument, "layer") { try cache.append(key: two, value: two, toEach: [first, second], layer: 1) }
        expectError(.capacityExceeded, "pageCapacity") {
            try cache.append(key: three, value: three, toEach: [first, second, third])
        }
        #expect(try cache.length(of: first) == 16 && cache.length(of: second) == 0 && cache.usedPageCount == 1)
        try cache.append(key: two, value: two, toEach: [first, second])
        // A page that two forks share is copied once when both write to it.
        try cache.free(second)
        let fork = try cache.fork(first)
        try cache.append(key: two, value: two, toEach: [fork, first])
        #expect(try cache.length(of: fork) == 18 && cache.length(of: first) == 18 && cache.freePageCount == 0)
        try cache.append(key: Tensor<Float>(zeros: [1, 0, 2]), value: Tensor<Float>(zeros: [1, 0, 2]), toEach: [])
    }
}
