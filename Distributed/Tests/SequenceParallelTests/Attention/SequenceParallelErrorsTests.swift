import SequenceParallel
import SparseKernelsReference
import Synchronization
import Testing

/// Mistakes are errors on every rank, and none waits in vain.
@Suite("Sequence-parallel attention, errors")
struct SequenceParallelErrorsTests {
    /// The errors of all ranks.
    private func errors(
        ranks: Int, _ body: @escaping @Sendable (LocalCommunicator) throws(SparseKernelsError) -> Void
    ) -> [SparseKernelsError?] {
        let found = ErrorBox(count: ranks)
        // It throws the error of a rank that failed, which is among those found.
        _ = try? LocalCommunicator.run(ranks: ranks, timeLimit: 20) { (ranks) throws(SparseKernelsError) in
            do throws(SparseKernelsError) { try body(ranks) } catch { found.set(error, rank: ranks.rank) }
        }
        return found.errors
    }

    private final class ErrorBox: Sendable {
        private let box: Mutex<[SparseKernelsError?]>

        init(count: Int) { box = Mutex(Array(repeating: nil, count: count)) }

        func set(_ error: SparseKernelsError, rank: Int) { box.withLock { $0[rank] = error } }
        var errors: [SparseKernelsError?] { box.withLock { $0 } }
    }

    @Test("grids")
    func grids() throws {
        #expect(throws: SparseKernelsError(.invalidArgument, "ranks", expected: "at least 1", actual: "0")) {
            try RankGrid(ranks: 0, ulysses: 1)
        }
        for ulysses in [-1, 0, 4] {
            let error = #expect(throws: SparseKernelsError.self) { try RankGrid(ranks: 6, ulysses: ulysses) }
            #expect(error?.code == .invalidArgument && error?.argument == "ulysses")
        }
        let grid = try RankGrid(ranks: 6, ulysses: 2)
        #expect(grid.ring == 3 && grid.place(of: 5) == 1 && grid.group(of: 5) == 2)
        #expect(grid.rank(place: 1, group: 2) == 5 && grid.ranks(ofGroup: 1) == 2..<4 && grid.ranks == 6)
    }

    @Test("plans that cannot be are refused on every rank, which can go on")
    func plans() throws {
        let shards = try TokenShards.contiguous(length: 16, ranks: 4)
        let other = try TokenShards.contiguous(length: 16, ranks: 3)
        let found = errors(ranks: 4) { (ranks) throws(SparseKernelsError) in
            func expect(
                _ argument: String, shards: TokenShards = shards, heads: Int = 4, kvHeads: Int = 2, ulysses: Int = 1,
                mask: AttentionMask = .causal, modifiers: ScoreModifiers = ScoreModifiers(), sliceRows: Int? = nil
            ) {
                let error = #expect(throws: SparseKernelsError.self) {
                    _ = try SequenceParallelAttention(
                        shards, queryHeads: heads, kvHeads: kvHeads, headDim: 8, mask: mask, modifiers: modifiers,
                        ulysses: ulysses, sliceRows: sliceRows, on: ranks)
                }
                #expect(error?.argument == argument, "\(String(describing: error))")
            }
            expect("shards.ranks", shards: other)
            expect("ulysses", ulysses: 3)
            expect("ulysses", ulysses: 0)
            expect("ulysses", heads: 6, kvHeads: 6, ulysses: 4)
            expect("ulysses", heads: 12, kvHeads: 3, ulysses: 2)
            expect("queryHeads", heads: 3)
            expect("mask.window", mask: .causal(window: 0))
            expect("modifiers.aliBiSlopes", modifiers: ScoreModifiers(aliBiSlopes: [1, 1, 1, 1]))
            expect("sinkLogits", modifiers: ScoreModifiers(sinkLogits: [1]))
            expect("sliceRows", sliceRows: 0)
            _ = try SequenceParallelAttention(shards, queryHeads: 4, kvHeads: 2, headDim: 8, ulysses: 4, on: ranks)
        }
        #expect(found == [nil, nil, nil, nil])
    }

    @Test("ranks that make different plans are told")
    func disagreement() throws {
        let shards = try TokenShards.contiguous(length: 16, ranks: 3)
        let ragged = try TokenShards.contiguous(lengths: [6, 5, 5])
        let changed = try TokenShards.contiguous(lengths: [5, 6, 5])
        #expect(shards == ragged)
        for kind in 0..<4 {
            let found = errors(ranks: 3) { (ranks) throws(SparseKernelsError) in
                let isOther = ranks.rank == 2
                _ = try SequenceParallelAttention(
                    isOther && kind == 0 ? changed : shards, queryHeads: isOther && kind == 1 ? 4 : 2, kvHeads: 2, headDim: 8,
                    mask: isOther && kind == 2 ? .full : isOther && kind == 3 ? .causal(window: 0) : .causal, on: ranks)
            }
            for error in found {
                #expect(error?.code == .communication)
                #expect(error?.actual.hasPrefix("on rank 2") ?? false, "\(String(describing: error))")
            }
        }
    }

    @Test("a rank with operands of another shape fails, and with it the others")
    func operands() throws {
        let shards = try TokenShards.contiguous(length: 12, ranks: 3)
        let found = errors(ranks: 3) { (ranks) throws(SparseKernelsError) in
            let attention = try SequenceParallelAttention(
                shards, queryHeads: 2, kvHeads: 1, headDim: 8, mask: .full, on: ranks)
            let tokens = ranks.rank == 1 ? 5 : 4
            let (q, k) = (try Tensor<Float>(zeros: [2, 4, 8]), try Tensor<Float>(zeros: [1, tokens, 8]))
            _ = try attention(query: q, key: k, value: k, on: .serial)
        }
        #expect(found[1]?.code == .invalidShape && found[1]?.argument == "key")
        #expect(found[1]?.description.contains("4 tokens of rank 1") ?? false)
        for rank in [0, 2] {
            #expect(found[rank]?.code == .communication)
            #expect(found[rank]?.description.contains("rank 1") ?? false, "\(String(describing: found[rank]))")
        }
    }

    @Test("a rank with another element type fails")
    func elementTypes() throws {
        let shards = try TokenShards.contiguous(length: 12, ranks: 2)
        let found = errors(ranks: 2) { (ranks) throws(SparseKernelsError) in
            let attention = try SequenceParallelAttention(
                shards, queryHeads: 1, kvHeads: 1, headDim: 8, mask: .full, on: ranks)
            let q = try Tensor<Float>(zeros: [1, 6, 8])
            let k = try Tensor<BFloat16>(zeros: [1, 6, 8])
            if ranks.rank == 0 {
                _ = try attention(query: q, key: k, value: k, on: .serial)
            } else {
                _ = try attention(query: q, key: q, value: q, on: .serial)
            }
        }
        for error in found { #expect(error?.code == .communication, "\(String(describing: error))") }
    }
}
