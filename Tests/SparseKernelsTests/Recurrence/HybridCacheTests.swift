import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Hybrid cache of pages and states")
struct HybridCacheTests {
    static func makeCache(pages: Int = 12, states: Int = 6, hasAttention: Bool = true) throws -> HybridCache {
        try HybridCache(
            attention: hasAttention
                ? KVCacheConfiguration(layers: 2, kvHeads: 1, headDim: 4, pageSize: 16, pageCapacity: pages, format: .float32)
                : nil,
            recurrent: [[RecurrentStateShape(heads: 1, rows: 2, columns: 3)], [.convolution(channels: 5, width: 3)]],
            stateCapacity: states)
    }
    static let bytesPerSlot = (6 + 10) * 4

    /// Some tokens through all layers: keys of a value, and states that hold it.
    static func run(_ value: Int, tokens: Int, _ sequence: HybridCache.SequenceID, _ cache: HybridCache) throws {
        if let attention = cache.attention {
            let rows = try Tensor<Float>([1, tokens, 4]) { _ in Float(value) }
            for layer in 0..<2 { try attention.append(key: rows, value: rows, to: sequence, layer: layer) }
        }
        try RecurrentStatePoolTests.write(value, to: sequence, of: cache.states)
        try cache.advance(sequence, by: tokens)
    }

    @Test("both parts fork, go back and are freed together")
    func story() throws {
        let cache = try Self.makeCache()
        let attention = try #require(cache.attention)
        let page = attention.configuration.bytesPerPage
        #expect(cache.byteCount == 12 * page + 6 * Self.bytesPerSlot && cache.usedByteCount == 0)
        let a = try cache.makeSequence()
        try Self.run(1, tokens: 18, a, cache)
        try cache.checkpoint(a)
        try Self.run(2, tokens: 15, a, cache)
        #expect(try cache.length(of: a) == 33 && attention.length(of: a) == 33 && cache.checkpoints(of: a) == [18])
        #expect(cache.usedByteCount == 3 * page + 2 * Self.bytesPerSlot)
        let b = try cache.fork(a, at: 18)
        let c = try cache.fork(a)
        #expect(try cache.length(of: b) == 18 && attention.length(of: b) == 18)
        #expect(try RecurrentStatePoolTests.value(of: b, in: cache.states) == 1)
        #expect(try RecurrentStatePoolTests.value(of: c, in: cache.states) == 2 && cache.length(of: c) == 33)
        // Pages and the checkpoint are shared.
        #expect(cache.usedByteCount == 3 * page + 4 * Self.bytesPerSlot)
        expectError(.invalidArgument, "length", containing: "present 33", "[18]", "got 8") { try cache.truncate(a, to: 8) }
        expectError(.invalidArgument, "length", containing: "[18]", "got 8") { _ = try cache.fork(a, at: 8) }
        #expect(try attention.length(of: a) == 33 && cache.usedByteCount == 3 * page + 4 * Self.bytesPerSlot)
        try cache.truncate(a, to: 18)
        #expect(try attention.length(of: a) == 18 && RecurrentStatePoolTests.value(of: a, in: cache.states) == 1)
        try cache.reset(c)
        #expect(try cache.length(of: c) == 0 && attention.length(of: c) == 0)
        try cache.free(b)
        try cache.free(a)
        try cache.free(c)
        #expect(cache.usedByteCount == 0 && attention.sequences.isEmpty && cache.sequences.isEmpty)
        expectError(.unknownSequence, "sequence") { try cache.reset(a) }
        expectError(.unknownSequence, "sequence") { try cache.free(a) }
    }

    @Test("a step that is not finished is an error, or undone")
    func steps() throws {
        let cache = try Self.makeCache()
        let a = try cache.makeSequence()
        try Self.run(1, tokens: 3, a, cache)
        try cache.checkpoint(a)
        let rows = try Tensor<Float>([1, 2, 4]) { _ in 9 }
        try cache.attention!.append(key: rows, value: rows, to: a, layer: 0)
        try RecurrentStatePoolTests.write(9, to: a, of: cache.states)
        expectError(.invalidArgument, "tokens", containing: "3 tokens, which attention layer 1", "2, which gives 5") {
            try cache.advance(a, by: 2)
        }
        expectError(.invalidArgument, "sequence", containing: "5 tokens", "3") { try cache.checkpoint(a) }
        expectError(.invalidArgument, "sequence", containing: "5 tokens") { _ = try cache.fork(a) }
        expectError(.invalidArgument, "tokens", containing: "-1") { try cache.advance(a, by: -1) }
        try cache.truncate(a, to: 3)
        #expect(try cache.attention!.length(of: a) == 3 && RecurrentStatePoolTests.value(of: a, in: cache.states) == 1)
    }

    @Test("without room nothing changes in either part")
    func capacity() throws {
        let cache = try Self.makeCache(pages: 2, states: 2)
        let a = try cache.makeSequence()
        try Self.run(1, tokens: 5, a, cache)
        _ = try cache.makeSequence()
        let used = cache.usedByteCount
        expectError(.capacityExceeded, "capacity", containing: "2") { _ = try cache.makeSequence() }
        expectError(.capacityExceeded, "capacity", containing: "2") { _ = try cache.fork(a) }
        expectError(.capacityExceeded, "capacity", containing: "2") { try cache.checkpoint(a) }
        #expect(cache.usedByteCount == used && cache.attention!.sequences.count == 2)
        // A sequence that only one part knows.
        let alone = cache.attention!.makeSequence()
        expectError(.unknownSequence, "sequence") { try cache.free(alone) }
        #expect(cache.attention!.sequences.count == 3)
    }

    @Test("a model without attention has one part")
    func recurrentOnly() throws {
        let directory = try TemporaryDirectory()
        let cache = try Self.makeCache(hasAttention: false)
        let a = try cache.makeSequence()
        try Self.run(4, tokens: 6, a, cache)
        try cache.checkpoint(a)
        try Self.run(5, tokens: 1, a, cache)
        let b = try cache.fork(a, at: 6)
        #expect(cache.usedByteCount == 3 * Self.bytesPerSlot)
        try cache.save(to: "\(directory.path)/cache")
        let copy = try HybridCache(contentsOf: "\(directory.path)/cache")
        #expect(copy.attention == nil && Set(copy.sequences) == [a, b])
        #expect(try RecurrentStatePoolTests.value(of: b, in: copy.states) == 4 && copy.length(of: a) == 7)
        try copy.truncate(a, to: 0)
        #expect(try copy.length(of: a) == 0)
    }

    @Test("a saved cache comes back, and its file is also one of each part")
    func saving() throws {
        let directory = try TemporaryDirectory()
        let path = "\(directory.path)/cache"
        let cache = try Self.makeCache()
        let a = try cache.makeSequence()
        try Self.run(1, tokens: 6, a, cache)
        try cache.checkpoint(a)
        let b = try cache.fork(a)
        try Self.run(2, tokens: 5, b, cache)
        try cache.save(to: path)
        let copy = try HybridCache(contentsOf: path)
        #expect(copy.usedByteCount == cache.usedByteCount && copy.byteCount == cache.byteCount)
        #expect(try copy.length(of: b) == 11 && copy.attention!.length(of: b) == 11)
        #expect(try RecurrentStatePoolTests.value(of: b, in: copy.states) == 2)
        try copy.truncate(b, to: 6)
        #expect(try RecurrentStatePoolTests.value(of: b, in: copy.states) == 1 && copy.attention!.length(of: b) == 6)
        #expect(try ![a, b].contains(copy.makeSequence()))
        #expect(try Set(PagedKVCache(contentsOf: path).sequences) == [a, b])
        #expect(try Set(RecurrentStatePool(contentsOf: path).sequences) == [a, b])
        // Parts with other sequences.
        let file = try SafetensorsFile(path: path)
        var writer = SafetensorsWriter(metadata: file.metadata)
        for entry in file.tensors where entry.name != "recurrent.names" { try writer.add(entry.name, from: file) }
        try writer.add("recurrent.names", Tensor<UInt32>([2, 2], [0, 1, 7, 1]))
        try writer.write(to: path + "2")
        expectError(.malformedFile, describing: "recurrent.names", "attention") { _ = try HybridCache(contentsOf: path + "2") }
        try cache.states.save(to: path + "3")
        expectError(.notFound, describing: "hybrid.attention") { _ = try HybridCache(contentsOf: path + "3") }
        expectError(.inputOutput, describing: "nothing") { _ = try HybridCache(contentsOf: "\(directory.path)/nothing") }
    }

    @Test("both parts agree after any operations", arguments: [1, 2, 3])
    func property(_ seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        func draw(_ count: Int) -> Int { Int(random.next() % UInt64(count)) }
        let cache = try Self.makeCache(pages: 10, states: 7)
        let attention = cache.attention!
        var values: [HybridCache.SequenceID: Int] = [:]
        var refused = 0
        for step in 1...400 {
            let names = cache.sequences.sorted { "\($0)" < "\($1)" }
            let before = (cache.usedByteCount, attention.usedPageCount, cache.states.usedSlotCount)
            do {
                guard let name = names.isEmpty ? nil : names[draw(names.count)] else {
                    values[try cache.makeSequence()] = 0
                    continue
                }
                switch draw(7) {
                case 0: values[try cache.makeSequence()] = 0
                case 1:
                    try cache.free(name)
                    values[name] = nil
                case 2: values[try cache.fork(name)] = values[name]
                case 3: try cache.checkpoint(name)
                case 4:
                    let lengths = try cache.checkpoints(of: name) + [0]
                    let length = lengths[draw(lengths.count)]
                    try cache.truncate(name, to: length)
                    values[name] = try RecurrentStatePoolTests.value(of: name, in: cache.states)
                    // What the states hold is what the last key holds.
                    if length > 0 {
                        let key = try attention.keys(of: name, tokens: length - 1..<length)
                        #expect(Int(key[flat: 0]) == values[name])
                    } else {
                        #expect(values[name] == 0)
                    }
                default:
                    // Two pages and a copy at most.
                    let tokens = 1 + draw(20)
                    if attention.freePageCount < 3 { continue }
                    try Self.run(step, tokens: tokens, name, cache)
                    values[name] = step
                }
            } catch let error as SparseKernelsError {
                #expect(error.code == .capacityExceeded, "\(error)")
                #expect(before == (cache.usedByteCount, attention.usedPageCount, cache.states.usedSlotCount))
                refused += 1
            }
            #expect(Set(attention.sequences) == Set(cache.sequences))
            for (name, value) in values {
                #expect(try RecurrentStatePoolTests.value(of: name, in: cache.states) == value)
                #expect(try attention.length(of: name, layer: 1) == cache.length(of: name))
            }
            #expect(
                cache.usedByteCount == attention.usedPageCount * attention.configuration.bytesPerPage
                    + cache.states.usedSlotCount * Self.bytesPerSlot)
        }
        #expect(refused > 5)
    }
}
