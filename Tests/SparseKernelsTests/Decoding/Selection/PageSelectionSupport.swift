import SparseKernels
import SparseKernelsReference
import Testing

/// A cache with some sequences of random keys, and queries for them.
struct PageSelectionFixture {
    let cache: PagedKVCache
    let sequences: [PagedKVCache.SequenceID]
    /// `[queryHeads, sequences, headDim]`.
    let query: Tensor<Float>

    /// Keys are stored in half precision, in which the operands already are, so that half-precision metadata are exact.
    init(
        lengths: [Int], queryHeads: Int = 4, kvHeads: Int = 2, headDim: Int = 24, pageSize: Int = 64,
        metadata: PageMetadata? = PageMetadata(), format: KVFormat = .float16, layers: Int = 1, pages: Int? = nil,
        seed: UInt64 = 1,
        instructionSet: InstructionSet? = nil
    ) throws {
        let needed = lengths.reduce(0) { $0 + ($1 + pageSize - 1) / pageSize }
        cache = try PagedKVCache(
            KVCacheConfiguration(
                layers: layers, kvHeads: kvHeads, headDim: headDim, pageSize: pageSize, pageCapacity: pages ?? max(1, needed),
                format: format, metadata: metadata), instructionSet: instructionSet)
        sequences = lengths.map { [cache] _ in cache.makeSequence() }
        for (index, length) in lengths.enumerated() where length > 0 {
            for layer in 0..<layers {
                let key = try Tensor<Float16>.normal([kvHeads, length, headDim], seed: seed &+ UInt64(100 * index + layer))
                try cache.append(key: key.view(), value: key.view(), to: sequences[index], layer: layer)
            }
        }
        query = try .normal([queryHeads, lengths.count, headDim], seed: seed &+ 7)
    }

    /// The query row of a head and a sequence.
    func row(head: Int, sequence: Int) -> [Double] {
        query.rows(ofHead: head)[sequence]
    }

    /// The exact scores of the logical pages of a query head, and the largest error of single precision.
    ///
    /// A score is one product of 2·headDim terms, half of them 0, summed in some order: γ·Σ|terms|, γ ≤ 2·headDim·u.
    func scores(head: Int, sequence: Int, layer: Int = 0) throws -> (values: [Double], bound: Double) {
        let configuration = cache.configuration
        let length = try cache.length(of: sequences[sequence], layer: layer)
        guard length > 0, let metadata = configuration.metadata else { return ([], 0) }
        let keys = try cache.keys(of: sequences[sequence], layer: layer)
            .rows(ofHead: head / (query.shape[0] / configuration.kvHeads))
        let pages = ReferencePageSelection(keys: keys, pageSize: metadata.logicalPageSize)
        let q = row(head: head, sequence: sequence)
        let magnitude = zip(pages.maxima, pages.minima).map { high, low in
            q.indices.reduce(0) { $0 + abs(q[$1]) * max(abs(high[$1]), abs(low[$1])) }
        }
        return (pages.scores(query: q), 2 * Double(configuration.headDim) * 0x1p-24 * magnitude.max()!)
    }

    /// The exact scores of physical pages of every list, and their bound.
    func pageScores(sequence: Int, sharing: SelectionSharing, layer: Int = 0) throws -> [(values: [Double], bound: Double)] {
        let configuration = cache.configuration
        let logicalPages = configuration.pageSize / configuration.metadata!.logicalPageSize
        let heads = try (0..<query.shape[0]).map { try scores(head: $0, sequence: sequence, layer: layer) }
        let group = query.shape[0] / (sharing == .kvHead ? configuration.kvHeads : query.shape[0])
        return stride(from: 0, to: heads.count, by: group).map { first in
            let members = heads[first..<first + group]
            let physical = members.map { ReferencePageSelection.physicalScores($0.values, logicalPages: logicalPages) }
            let largest = physical[0].indices.map { page in physical.map { $0[page] }.max()! }
            return (largest, members.map(\.bound).max()!)
        }
    }
}

extension KVSelection {
    /// The lists of one sequence.
    func lists(sequence: Int) -> [[Int]] { (0..<heads).map { list(sequence: sequence, head: $0).map { Int($0) } } }
}
