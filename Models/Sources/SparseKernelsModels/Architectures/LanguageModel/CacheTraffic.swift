import SparseKernels

/// The bytes of a cache that decoding reads in one layer, counted from lengths and selections.
struct CacheTraffic: Sendable {
    /// Bytes of a token's key and value in one head.
    let tokenBytes: Double
    /// Bytes of the metadata of a logical page in one head.
    private let metadataBytes: Double
    private let logicalPageSize: Int
    /// Bytes of the 4-bit copy of a key in one head.
    private let estimateBytes: Double
    private let kvHeads: Int

    init(_ configuration: KVCacheConfiguration) {
        func bytes(_ format: KVFormat, _ channels: Int) -> Double {
            switch format {
            case .float32: 4 * Double(channels)
            case .float16, .bfloat16: 2 * Double(channels)
            case .int8: Double(channels) + 4
            case .int4: Double((channels + 1) / 2) + 4
            }
        }
        tokenBytes =
            bytes(configuration.keyFormat, configuration.headDim) + bytes(configuration.valueFormat, configuration.valueDim)
        if let metadata = configuration.metadata {
            metadataBytes = (metadata.kind == .minMax ? 2 : 1) * bytes(metadata.format, configuration.headDim)
            logicalPageSize = metadata.logicalPageSize
        } else {
            (metadataBytes, logicalPageSize) = (0, 1)
        }
        // With INT4 keys the estimates are the keys; they are read all the same.
        estimateBytes = bytes(.int4, configuration.headDim)
        kvHeads = configuration.kvHeads
    }

    /// All tokens of sequences of these lengths.
    func dense(_ lengths: [Int]) -> Double { Double(lengths.reduce(0, +) * kvHeads) * tokenBytes }

    /// At most so many tokens of each.
    func dense(_ lengths: [Int], atMost limit: Int) -> Double { dense(lengths.map { min($0, limit) }) }

    /// The tokens of a selection.
    func selected(_ selection: KVSelection, _ lengths: [Int]) -> Double {
        var tokens = 0
        for (sequence, length) in lengths.enumerated() {
            for head in 0..<selection.heads {
                let list = selection.list(sequence: sequence, head: head)
                tokens += list.count * selection.unit
                // The last page may be partly full.
                if let last = list.last { tokens -= max(0, (Int(last) + 1) * selection.unit - length) }
            }
        }
        // Lists of query heads read what they share once per list; a list of a KV head is read once.
        return Double(tokens * kvHeads) / Double(selection.heads) * tokenBytes
    }

    /// All tokens of the key/value heads that have a selected query head.
    func selected(_ heads: HeadSelection, _ lengths: [Int]) -> Double {
        var tokens = 0
        for (sequence, length) in lengths.enumerated() {
            tokens += length * Set(heads.list(sequence: sequence).map { Int($0) * kvHeads / heads.heads }).count
        }
        return Double(tokens) * tokenBytes
    }

    /// The metadata of all pages of sequences of these lengths.
    func metadata(_ lengths: [Int]) -> Double {
        let pages = lengths.reduce(0) { $0 + ($1 + logicalPageSize - 1) / logicalPageSize }
        return Double(pages * kvHeads) * metadataBytes
    }

    /// The estimates of at most so many tokens of each sequence.
    func estimates(_ lengths: [Int], atMost limit: Int) -> Double {
        Double(lengths.reduce(0) { $0 + min($1, limit) } * kvHeads) * estimateBytes
    }
}
