import BenchmarkReport
import SparseKernels
import SparseKernelsReference

/// Dense attention on captured and on synthetic operands.
struct AttentionCases: CaseFamily {
    let run: RunContext

    func section() -> Section {
        var groups: [CaseGroup] = []
        for name in isQuick ? ["lm-layer3-8192"] : ["lm-layer3-8192", "lm-layer3-32768"] {
            guard let path = DataFiles.capture(name), let capture = try? Capture(path: path) else { continue }
            groups.append(group(capture, elements: Float.self))
            groups.append(group(capture, elements: Float16.self))
        }
        for length in isQuick ? [2048, 8192] : [2048, 8192, 16384] {
            for headDim in [64, 128] {
                for mask in [AttentionMask.full, .causal] { groups.append(synthetic(length, headDim, mask)) }
            }
        }
        return Section(
            kind: .denseAttention, groups: groups, baselines: baselines)
    }

    private var baselines: [String] { (pools.count > 1 ? ["1 thread"] : []) + (instructionSets.count > 1 ? ["avx2"] : []) }

    private func group<Element: AttentionElement>(_ capture: Capture, elements: Element.Type) -> CaseGroup {
        let mask: AttentionMask = capture.isCausal ? .causal : .full
        let name = "\(capture.name)\(capture.isCausal ? " causal" : "") \(Element.elementType.rawValue.lowercased())"
        return group(name, capture.shape, mask, capture.modifiers) {
            (
                try capture.file.floatTensor("query").converted(to: Element.self),
                try capture.file.floatTensor("key").converted(to: Element.self),
                try capture.file.floatTensor("value").converted(to: Element.self)
            )
        }
    }

    /// Without `heads`, the number of heads gives every length about the same work per call at equal headDim and mask.
    private func synthetic(_ length: Int, _ headDim: Int, _ mask: AttentionMask) -> CaseGroup {
        let heads = run.heads ?? max(1, 16384 / length)
        let shape = try! AttentionShape(
            queryLength: length, keyLength: length, queryHeads: heads, kvHeads: heads, headDim: headDim)
        let name = "N \(length) d \(headDim) H \(heads) \(mask.isCausal ? "causal" : "full")"
        return group(name, shape, mask, ScoreModifiers()) {
            (
                try Tensor<Float>.normal([heads, length, headDim], seed: 1),
                try Tensor<Float>.normal([heads, length, headDim], seed: 2),
                try Tensor<Float>.normal([heads, length, headDim], seed: 3)
            )
        }
    }

    private func group<Element: AttentionElement>(
        _ name: String, _ shape: AttentionShape, _ mask: AttentionMask, _ modifiers: ScoreModifiers,
        _ operands: @escaping () throws -> (Tensor<Element>, Tensor<Element>, Tensor<Element>)
    ) -> CaseGroup {
        let perPair = 2 * Double(shape.headDim + shape.valueDim)
        // The plan is only used to count operations. A level is given because the environment's choice may be invalid.
        let plan = try! DenseAttention(shape, mask: mask, modifiers: modifiers, instructionSet: instructionSets[0])
        return CaseGroup(
            op: "attention.dense", name: name,
            amounts: .operations(
                perPair * Double(plan.visiblePairs),
                effective: perPair * Double(shape.queryHeads * shape.queryLength) * Double(shape.keyLength))
        ) { _ in
            let (query, key, value) = try operands()
            let checker = AttentionChecker(
                reference: ReferenceAttention(shape, mask: mask, modifiers: modifiers), query: query, key: key, value: value)
            var variants: [Variant] = []
            for set in instructionSets {
                let plan = try DenseAttention(shape, mask: mask, modifiers: modifiers, instructionSet: set)
                let first = variants.count
                for pool in pools {
                    let output = AttentionOutput(shape)
                    let body = { output.compute(plan, query, key, value, on: pool) }
                    var baseline: (Int, String)?
                    if variants.count > first {
                        baseline = (first, "1 thread")
                    } else if set != .avx2, let other = instructionSets.firstIndex(of: .avx2), set == .avx512 {
                        baseline = (other * pools.count, "avx2")
                    }
                    variants.append(
                        Variant(
                            isa: set.name, threads: pool.threads, body: body,
                            verify: {
                                body()
                                return try checker.check(output.tensor)
                            }, baseline: baseline,
                            roof: { MachineRoofs.multiplyAdd(instructionSet: set, on: pool, duration: .zero) }))
                }
            }
            return variants
        }
    }
}
