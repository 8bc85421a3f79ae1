import BenchmarkReport
import SparseKernels
import SparseKernelsReference

/// Block-sparse attention on random masks of given densities, beside dense attention of the same operands: the gain of a mask
/// without the cost of estimating it.
struct SparseAttentionCases: CaseFamily {
    let run: RunContext

    func section() -> Section {
        var groups: [CaseGroup] = []
        if isQuick {
            groups.append(group(8192, headDim: 128, blockSize: 128, densities: [0.05, 0.2], pools: [pools.last!]))
        } else {
            for headDim in [64, 128] {
                for blockSize in [128, 64] {
                    groups.append(
                        group(
                            8192, headDim: headDim, blockSize: blockSize,
                            densities: [0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1], pools: pools))
                }
            }
            for headDim in [64, 128] {
                // One dense call takes seconds here, so it runs on all threads only.
                var long = group(
                    32768, headDim: headDim, blockSize: 128, densities: [0.02, 0.05, 0.1, 0.2], pools: [pools.last!])
                long.rounds = 5
                groups.append(long)
            }
        }
        return Section(kind: .blockSparse, groups: groups, baselines: [BenchmarkRow.denseBaseline, Self.runBaseline])
    }

    private static let runBaseline = "run"

    private func group(
        _ length: Int, headDim: Int, blockSize: Int, densities: [Double], pools: [WorkerPool]
    ) -> CaseGroup {
        let heads = run.heads ?? max(1, 16384 / length)
        let shape = try! AttentionShape(
            queryLength: length, keyLength: length, queryHeads: heads, kvHeads: heads, headDim: headDim)
        let perPair = 2 * Double(shape.headDim + shape.valueDim)
        let all = perPair * Double(heads * length * length)
        return CaseGroup(
            op: "attention.blocksparse", name: "N \(length) d \(headDim) H \(heads) B \(blockSize)",
            amounts: .operations(all, effective: all),
            labels: ["dense", "plan"], otherOps: ["attention.plan"]
        ) { announce in
            let query = try Tensor<Float>.normal([heads, length, headDim], seed: 1)
            let key = try Tensor<Float>.normal([heads, length, headDim], seed: 2)
            let value = try Tensor<Float>.normal([heads, length, headDim], seed: 3)
            let grid = try BlockGrid(shape, blockSize: blockSize, isCausal: false)
            let reference = ReferenceAttention(shape)
            announce("masks and sampled rows of the oracle")
            let checker = AttentionChecker(reference: reference, query: query, key: key, value: value)
            let masks = try densities.enumerated().map { index, density in
                let mask = try BlockMask.random(grid, heads: heads, density: density, seed: UInt64(index))
                return (
                    mask, AttentionChecker(reference: reference, mask: mask, query: query, key: key, value: value)
                )
            }
            let output = AttentionOutput(shape)
            var variants: [Variant] = []
            for set in instructionSets {
                let dense = try DenseAttention(shape, instructionSet: set)
                let plans = try masks.map { try BlockSparseAttention(shape, mask: $0.0, instructionSet: set) }
                for pool in pools {
                    let denseIndex = variants.count
                    let roof = { MachineRoofs.multiplyAdd(instructionSet: set, on: pool, duration: .zero) }
                    let body = { output.compute(dense, query, key, value, on: pool) }
                    variants.append(
                        Variant(
                            isa: set.name, threads: pool.threads, body: body,
                            verify: {
                                body()
                                return try checker.check(output.tensor)
                            }, roof: roof, op: "attention.blocksparse.dense", label: "dense"))
                    for ((mask, checker), plan) in zip(masks, plans) {
                        let body = { output.compute(plan, query, key, value, on: pool) }
                        variants.append(
                            Variant(
                                isa: set.name, threads: pool.threads, body: body,
                                verify: {
                                    body()
                                    return try checker.check(output.tensor)
                                }, baseline: (denseIndex, BenchmarkRow.denseBaseline), roof: roof,
                                amounts: .operations(perPair * Double(plan.visiblePairs), effective: all),
                                metrics: [.density: mask.density]))
                    }
                }
                // Planning uses one thread; it is compared with the run that it delays most, the one on all threads.
                let runs = variants.count - masks.count
                for (index, (mask, _)) in masks.enumerated() {
                    variants.append(
                        .planning(shape, mask, modifiers: ScoreModifiers(), set)
                            .labelled("plan", baseline: (runs + index, Self.runBaseline)))
                }
            }
            return variants
        }
    }
}

extension Variant {
    /// The row of making a plan from a mask, which is checked by its number of score entries.
    static func planning(
        _ shape: AttentionShape, _ mask: BlockMask, modifiers: ScoreModifiers, _ set: InstructionSet
    ) -> Variant {
        Variant(
            isa: set.name, threads: 1,
            body: { _ = try! BlockSparseAttention(shape, mask: mask, modifiers: modifiers, instructionSet: set) },
            verify: {
                let plan = try BlockSparseAttention(shape, mask: mask, modifiers: modifiers, instructionSet: set)
                let expected = mask.visiblePairs * (shape.queryHeads / mask.heads)
                return Verification(error: Double(abs(plan.visiblePairs - expected)), bound: 0)
            }, op: "attention.plan", amounts: .uncounted, metrics: [.density: mask.density])
    }
}

extension BlockMask {
    /// A mask of random blocks, round(density · columns) in every row but at least one, so that all rows cost the same.
    static func random(_ grid: BlockGrid, heads: Int, density: Double, seed: UInt64) throws -> BlockMask {
        var generator = SplitMix64(seed: seed)
        let count = max(1, Int((density * Double(grid.blockColumns)).rounded()))
        var columns = Array(0..<Int32(grid.blockColumns))
        var offsets = [0]
        var kept: [Int32] = []
        for _ in 0..<heads * grid.blockRows {
            columns.shuffle(using: &generator)
            kept += columns.prefix(count).sorted()
            offsets.append(kept.count)
        }
        return try BlockMask(grid: grid, heads: heads, rowOffsets: offsets, columnIndices: kept)
    }
}
