import SequenceParallel
import SparseKernelsReference
import Testing

@Suite("Sharded KV cache: random operations")
struct ShardedKVCacheRandomTests {
    struct Setting: Sendable {
        let ranks: Int
        let format: KVFormat
        let metadata: PageMetadata?
        /// Pages of a rank; few, so that operations are refused.
        let pages: Int
        /// Whether prompts are cut at pages.
        let isAligned: Bool
    }

    static let settings = [
        Setting(ranks: 1, format: .float16, metadata: PageMetadata(.minMax, logicalPageSize: 8), pages: 40, isAligned: true),
        Setting(ranks: 2, format: .float32, metadata: nil, pages: 16, isAligned: true),
        Setting(
            ranks: 3, format: .int8, metadata: PageMetadata(.minMax, logicalPageSize: 4), pages: 14, isAligned: true),
        Setting(ranks: 3, format: .bfloat16, metadata: PageMetadata(.mean, logicalPageSize: 16), pages: 14, isAligned: false),
        Setting(ranks: 4, format: .int4, metadata: nil, pages: 9, isAligned: false),
    ]

    /// Every rank makes the same random calls to its part of the sharded cache and to a cache of one machine.
    @Test("random operations agree with one machine", arguments: settings)
    func agreesWithOneMachine(_ setting: Setting) throws {
        let reports = try LocalCommunicator.run(ranks: setting.ranks, timeLimit: 60) { (ranks) throws(SparseKernelsError) in
            var pair = try CachePair(setting, on: ranks)
            for step in 0..<150 where pair.differences.isEmpty { try pair.step(step) }
            return pair.report
        }
        for report in reports {
            #expect(report.differences.isEmpty, "\(report.differences.first ?? "")")
            #expect(report.done > 60 && report.refused > 0, "\(report.done) done, \(report.refused) refused")
            #expect(report.done == reports[0].done)
        }
    }
}

/// A sharded cache and one machine's, driven with the same calls.
private struct CachePair {
    struct Report: Sendable {
        var (done, refused) = (0, 0)
        var differences: [String] = []
    }

    let setting: ShardedKVCacheRandomTests.Setting
    let cache: ShardedKVCache
    let whole: PagedKVCache
    var sequences: [(sharded: ShardedKVCache.SequenceID, whole: PagedKVCache.SequenceID)] = []
    var random = SplitMix64(seed: 11)
    private(set) var report = Report()
    var differences: [String] { report.differences }
    private var layers: Int { cache.configuration.layers }

    init(_ setting: ShardedKVCacheRandomTests.Setting, on ranks: any Communicator) throws(SparseKernelsError) {
        self.setting = setting
        func configuration(_ pages: Int) throws(SparseKernelsError) -> KVCacheConfiguration {
            try KVCacheConfiguration(
                layers: 2, kvHeads: 2, headDim: 4, valueDim: 3, pageSize: 16, pageCapacity: pages, format: setting.format,
                metadata: setting.metadata)
        }
        cache = try ShardedKVCache(configuration(setting.pages), on: ranks)
        whole = try PagedKVCache(configuration(1000))
    }

    private mutating func below(_ count: Int) -> Int { Int(random.next() % UInt64(max(1, count))) }

    private mutating func rows(_ tokens: Int, _ channels: Int) throws(SparseKernelsError) -> Tensor<Float> {
        try .normal([2, tokens, channels], seed: random.next())
    }

    mutating func step(_ number: Int) throws(SparseKernelsError) {
        let before = cache.localPages
        let lengths = try self.lengths()
        let refusal = try operate()
        if let refusal {
            report.refused += 1
            if refusal.code != .capacityExceeded { report.differences.append("step \(number): \(refusal)") }
            let (pagesAfter, lengthsAfter) = (cache.localPages, try self.lengths())
            if pagesAfter != before || lengthsAfter != lengths {
                report.differences.append("step \(number) changed something: \(refusal)")
            }
        } else {
            report.done += 1
        }
        try check(number)
    }

    private func lengths() throws(SparseKernelsError) -> [Int] {
        var result: [Int] = []
        for sequence in sequences {
            for layer in 0..<layers { result.append(try cache.length(of: sequence.sharded, layer: layer)) }
        }
        return result
    }

    /// Does something to both caches. Returns the error when the sharded one refuses; then nothing is done to the other.
    private mutating func operate() throws(SparseKernelsError) -> SparseKernelsError? {
        if sequences.isEmpty || (sequences.count < 4 && below(10) == 0) {
            sequences.append((cache.makeSequence(), whole.makeSequence()))
            return nil
        }
        let index = below(sequences.count)
        let sequence = sequences[index]
        let longest = try (0..<layers).map { (layer) throws(SparseKernelsError) in
            try whole.length(of: sequence.whole, layer: layer)
        }
        switch below(16) {
        case 0...4: return try appendStep()
        case 5...8: return try appendPrompt(sequence, 1 + below(50))
        case 9, 10:
            if sequences.count > 6 { return nil }
            let length = below((longest.max() ?? 0) + 1)
            var child: ShardedKVCache.SequenceID?
            if let error = catching({ () throws(SparseKernelsError) in child = try cache.fork(sequence.sharded, at: length) }) {
                return error
            }
            sequences.append((child!, try whole.fork(sequence.whole, at: length)))
        case 11, 12:
            let length = below((longest.max() ?? 0) + 1)
            if let error = catching({ () throws(SparseKernelsError) in try cache.truncate(sequence.sharded, to: length) }) {
                return error
            }
            try whole.truncate(sequence.whole, to: length)
        default:
            if below(2) == 0 { return nil }
            try cache.free(sequence.sharded)
            try whole.free(sequence.whole)
            sequences.remove(at: index)
        }
        return nil
    }

    /// A token for some sequences, in both layers; or none for lack of pages.
    private mutating func appendStep() throws(SparseKernelsError) -> SparseKernelsError? {
        let (count, first) = (1 + below(sequences.count), below(sequences.count))
        let chosen = (0..<count).map { sequences[(first + $0) % sequences.count] }
        for layer in 0..<layers {
            let (key, value) = (try rows(count, 4), try rows(count, 3))
            let error = catching { () throws(SparseKernelsError) in
                try cache.append(key: key, value: value, toEach: chosen.map(\.sharded), layer: layer, on: .serial)
            }
            if let error { return error }
            try whole.append(key: key, value: value, toEach: chosen.map(\.whole), layer: layer, on: .serial)
        }
        return nil
    }

    private mutating func appendPrompt(
        _ sequence: (sharded: ShardedKVCache.SequenceID, whole: PagedKVCache.SequenceID), _ count: Int
    ) throws(SparseKernelsError) -> SparseKernelsError? {
        let ranks = cache.communicator
        for layer in 0..<layers {
            let (key, value) = (try rows(count, 4), try rows(count, 3))
            var shards = try cache.placement(of: count, in: sequence.sharded, layer: layer)
            // Two forms of the same, or other owners where no layer is ahead.
            let isReplicated = setting.isAligned && below(2) == 0
            if !setting.isAligned, layer == 0 {
                shards = try .zigzag(length: count, ulysses: 1, ring: ranks.count)
            }
            let error = catching { () throws(SparseKernelsError) in
                if isReplicated {
                    try cache.append(key: key, value: value, to: sequence.sharded, layer: layer, on: .serial)
                } else {
                    let own = shards.positions(of: ranks.rank)
                    try cache.append(
                        key: key.picking(own), value: value.picking(own), to: sequence.sharded, shards: shards, layer: layer,
                        on: .serial)
                }
            }
            if let error { return error }
            try whole.append(key: key, value: value, to: sequence.whole, layer: layer, on: .serial)
        }
        return nil
    }

    private mutating func check(_ number: Int) throws(SparseKernelsError) {
        if number % 3 != 0 { return }
        let used = try cache.totalPages().used
        if setting.isAligned, used != whole.usedPageCount {
            report.differences.append("step \(number): \(used) pages, on one machine \(whole.usedPageCount)")
        }
        for sequence in sequences {
            for layer in 0..<layers {
                let (length, expected) = (
                    try cache.length(of: sequence.sharded, layer: layer), try whole.length(of: sequence.whole, layer: layer)
                )
                if length != expected { report.differences.append("step \(number): length \(length), expected \(expected)") }
            }
            let local = try cache.localName(of: sequence.sharded)
            let total = try cache.local.pageUse(of: local).total
            let all = try cache.communicator.gather([total]).reduce(0) { $0 + $1[0] }
            // Each rank may have one page that is not full.
            let most = try whole.pageUse(of: sequence.whole).total + cache.communicator.count
            if all > most { report.differences.append("step \(number): \(all) pages, expected at most \(most)") }
            if number % 15 != 0 { continue }
            for layer in 0..<layers {
                let (keys, values) = (
                    try cache.local.keys(of: local, layer: layer), try cache.local.values(of: local, layer: layer)
                )
                let tokens = Array(try cache.tokens(of: sequence.sharded).flatMap { $0 }.prefix(keys.shape[1]))
                let expectedKeys = try whole.keys(of: sequence.whole, layer: layer).picking(tokens)
                let expectedValues = try whole.values(of: sequence.whole, layer: layer).picking(tokens)
                if keys != expectedKeys || values != expectedValues {
                    report.differences.append("step \(number): other rows in layer \(layer)")
                }
            }
        }
    }
}

private func catching(_ body: () throws(SparseKernelsError) -> Void) -> SparseKernelsError? {
    do throws(SparseKernelsError) {
        try body()
        return nil
    } catch {
        return error
    }
}
