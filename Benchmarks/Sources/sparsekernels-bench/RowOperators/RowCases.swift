import BenchmarkReport
import SparseKernels

/// What a language model computes beside attention and linear layers. All of it is bound by memory: every call starts with empty
/// caches, and the roof is the memory bandwidth, measured on the same threads right before the call. What a call writes counts once,
/// although memory that is not in the cache is read before it is written.
struct RowCases: CaseFamily {
    let run: RunContext

    /// The widths of a model of 8 billion parameters, and the tokens of a prompt's chunk.
    static let (channels, inner, vocabulary, headDim) = (4096, 14336, 128_256, 128)
    private var tokens: Int { isQuick ? 64 : 512 }

    func section() -> Section {
        let (tokens, rows) = (tokens, isQuick ? [1] : [1, 64])
        var groups = [
            group("RMSNorm \(tokens)×\(Self.channels)") { try NormProblem(tokens: tokens, kind: .rms) },
            group("RMSNorm of sums \(tokens)×\(Self.channels)") { try NormProblem(tokens: tokens, kind: .rmsOfSums) },
            group("LayerNorm \(tokens)×\(Self.channels)") { try NormProblem(tokens: tokens, kind: .layer) },
            group("rotation \(tokens)×40×\(Self.headDim)") { try RotationProblem(tokens: tokens, heads: 40) },
            group("SiLU·gate \(tokens)×\(Self.inner)") { try ActivationProblem(tokens: tokens, .silu) },
            group("GELU·gate \(tokens)×\(Self.inner)") { try ActivationProblem(tokens: tokens, .gelu) },
            group("embedding f16 \(tokens)×\(Self.channels)") { try EmbeddingProblem(tokens: tokens) },
        ]
        groups += rows.map { rows in
            group("top 40 of logits \(rows)×\(Self.vocabulary)") { try LogitProblem(rows: rows) }
        }
        return Section(kind: .rowOperators, groups: groups, baselines: [])
    }

    private func group(_ name: String, _ make: @escaping () throws -> any RowProblem) -> CaseGroup {
        memoryGroup(op: "rows", name: name, make)
    }
}

extension CaseFamily {
    /// The rows of an operator that goes through memory once.
    func memoryGroup(op: String, name: String, _ make: @escaping () throws -> any RowProblem) -> CaseGroup {
        CaseGroup(op: op, name: name, amounts: .uncounted) { _ in
            let problem = try make()
            return try instructionSets.map { set in
                let body = try problem.body(set, on: pool)
                let caches = ColdCaches(set, pool)
                // One operation per element, so that rates have a unit.
                let (elements, bytes) = (Double(problem.elements), Double(problem.bytes))
                var variant = Variant(
                    isa: set.name, threads: pool.threads, body: body,
                    verify: {
                        problem.reset()
                        body()
                        return problem.check()
                    },
                    preparation: caches.empty,
                    roof: { caches.rate(operations: elements, bytes: bytes) }, amounts: .operations(elements))
                variant.metrics[.bytesRead] = bytes
                return variant
            }
        }
    }
}

/// The operands of one row operator.
protocol RowProblem: AnyObject {
    /// Elements of the result.
    var elements: Int { get }
    /// Bytes that a call reads and writes.
    var bytes: Int { get }
    func body(_ set: InstructionSet, on pool: WorkerPool) throws -> () -> Void
    /// Undoes what calls in place have done.
    func reset()
    /// Compares some rows of the last result with the oracle.
    func check() -> Verification
}

extension RowProblem {
    func reset() {}
}
