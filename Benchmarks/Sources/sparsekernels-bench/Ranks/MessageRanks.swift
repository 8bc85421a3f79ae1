import BenchmarkReport
import Communication
import SequenceParallel
import SparseKernels
import SparseKernelsReference

extension RankCases {
    /// One rank, which must cost nothing, beside the dense operator.
    func overhead() -> CaseGroup {
        let length = isQuick ? 2048 : 4096
        let shape = try! AttentionShape(
            queryLength: length, keyLength: length, queryHeads: Self.queryHeads, kvHeads: Self.kvHeads, headDim: Self.headDim)
        let plan = try! DenseAttention(shape, mask: .causal, instructionSet: instructionSet)
        return CaseGroup(
            op: "ranks.overhead", name: "\(length)",
            amounts: .operations(2 * Double(2 * Self.headDim) * Double(plan.visiblePairs)), labels: ["dense", "1 rank"]
        ) { _ in
            let query = try Tensor<Float>.normal([Self.queryHeads, length, Self.headDim], seed: 1)
            let key = try Tensor<Float>.normal([Self.kvHeads, length, Self.headDim], seed: 2)
            let value = try Tensor<Float>.normal([Self.kvHeads, length, Self.headDim], seed: 3)
            let (dense, ranked) = (AttentionOutput(shape), AttentionOutput(shape))
            let attention = try SequenceParallelAttention(
                .contiguous(length: length, ranks: 1), queryHeads: Self.queryHeads, kvHeads: Self.kvHeads,
                headDim: Self.headDim, mask: .causal, instructionSet: instructionSet, on: LocalCommunicator.alone())
            var variants: [Variant] = []
            for pool in pools {
                let first = variants.count
                variants.append(
                    Variant(
                        isa: instructionSet.name, threads: pool.threads,
                        body: { dense.compute(plan, query, key, value, on: pool) }, verify: { nil }, label: "dense"))
                variants.append(
                    Variant(
                        isa: instructionSet.name, threads: pool.threads,
                        body: { ranked.compute(attention, query, key, value, on: pool) },
                        verify: {
                            dense.compute(plan, query, key, value, on: pool)
                            ranked.compute(attention, query, key, value, on: pool)
                            // The same bits.
                            let isEqual = zip(dense.tensor.elements, ranked.tensor.elements).allSatisfy {
                                $0.bitPattern == $1.bitPattern
                            }
                            return Verification(error: isEqual ? 0 : .infinity, bound: 0)
                        }, baseline: (first, "dense"), label: "1 rank"))
            }
            return variants
        }
    }

    /// Messages around a ring, of some sizes, beside a copy of as many bytes by one core.
    func messages() -> [CaseGroup] {
        let counts = Set([rankCounts.first, rankCounts.last].compactMap(\.self)).sorted()
        if counts.isEmpty { return [] }
        return [8, 1 << 12, 1 << 18, 1 << 24].map { size in
            // Some calls must take longer than it takes to wake the ranks.
            let repeats = max(4, min(2000, (64 << 20) / size))
            return CaseGroup(
                op: "ranks.messages", name: "\(size) bytes", amounts: .uncounted,
                labels: ["copy"] + counts.map { "\($0) ranks" }
            ) { _ in
                let copy = try MessageMember(bytes: size, nil)
                var variants = [
                    Variant(
                        isa: "", threads: 1, body: { for _ in 0..<repeats { copy.copy() } }, verify: { nil },
                        metrics: [.bytesRead: Double(size)], tokensPerCall: repeats)
                ]
                variants[0].label = "copy"
                for ranks in counts {
                    let team = try RankTeam(ranks: ranks) { (communicator) throws(SparseKernelsError) in
                        try MessageMember(bytes: size, communicator)
                    }
                    variants.append(
                        Variant(
                            isa: "", threads: ranks,
                            body: { try! team.call { (member) throws(SparseKernelsError) in try member.shift(repeats) } },
                            verify: {
                                try team.call { (member) throws(SparseKernelsError) in try member.shift(1) }
                                return Verification(error: team.members.allSatisfy(\.isRight) ? 0 : .infinity, bound: 0)
                            }, baseline: (0, "copy"), label: "\(ranks) ranks", metrics: [.bytesRead: Double(size)],
                            tokensPerCall: repeats))
                }
                return variants
            }
        }
    }
}

extension AttentionOutput {
    /// One rank's attention of all tokens.
    fileprivate func compute(
        _ plan: SequenceParallelAttention, _ query: Tensor<Float>, _ key: Tensor<Float>, _ value: Tensor<Float>,
        on pool: WorkerPool
    ) {
        update { output in
            try! plan.run(
                query: query.view(named: "query"), key: key.view(named: "key"), value: value.view(named: "value"),
                output: output.mutableView(named: "output"), on: pool)
        }
    }
}

/// A rank that passes on messages.
private final class MessageMember {
    private let communicator: LocalCommunicator?
    private let sent: MessageBuffer
    private let received: MessageBuffer

    init(bytes: Int, _ communicator: LocalCommunicator?) throws(SparseKernelsError) {
        self.communicator = communicator
        sent = try MessageBuffer(byteCount: bytes)
        received = try MessageBuffer(byteCount: bytes)
        sent.address.initializeMemory(
            as: UInt8.self, repeating: UInt8(truncatingIfNeeded: (communicator?.rank ?? 0) + 1), count: bytes)
    }

    func copy() { received.address.copyMemory(from: sent.address, byteCount: sent.byteCount) }

    func shift(_ times: Int) throws(SparseKernelsError) {
        guard let communicator else { return }
        let (rank, count) = (communicator.rank, communicator.count)
        for _ in 0..<times {
            let coming = try communicator.receive(
                into: received, received.allBytes, from: (rank + count - 1) % count, tag: 0)
            let going = try communicator.send(sent, sent.allBytes, to: (rank + 1) % count, tag: 0)
            try communicator.wait(for: coming)
            try communicator.wait(for: going)
        }
    }

    /// Whether the bytes are those of the rank before.
    var isRight: Bool {
        guard let communicator else { return true }
        let expected = UInt8(truncatingIfNeeded: (communicator.rank + communicator.count - 1) % communicator.count + 1)
        let memory = received
        let bytes = memory.elements(UInt8.self)
        return bytes.indices.allSatisfy { bytes[$0] == expected }
    }
}
