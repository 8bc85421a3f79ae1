import BenchmarkReport
import Testing

@Suite struct SectionTests {
    @Test(arguments: [
        ("gemm", ReportSection.matrixProduct), ("gemm.tile", .matrixProduct), ("attention.dense", .denseAttention),
        ("attention.blocksparse", .blockSparse), ("attention.blocksparse.dense", .blockSparse),
        ("attention.plan", .blockSparse),
        ("scoring.mass", .scoring), ("prefill.dense", .prefill), ("pages.select", .denseAttention),
        ("quant.product", .quantizedProduct), ("quant.product.f32", .quantizedProduct), ("quant.error", .quantizationError),
        ("quant.product.group", .quantizedProduct), ("rows", .rowOperators),
        ("decode.step.twilight", .decode), ("decode.branches", .branches), ("decode.upkeep", .decodeUpkeep),
        ("decode.quality", .decodeQuality),
        ("blocks.attention", .blocks), ("blocks.logits", .blocks), ("recurrence.ssd", .recurrence),
        ("contextual.ffn", .contextual), ("vision.tower", .vision), ("ranks.prefill", .ranks),
        ("ranks.messages", .ranks),
    ])
    func operationsHaveASection(op: String, section: ReportSection) {
        #expect(ReportSection(op: op) == section)
    }

    @Test func theBestBlocksComeFirst() {
        let curve = MassCurve([1, 6, 2, 1] as [Float])
        #expect(curve.density(reaching: 0) == 0)
        #expect(curve.density(reaching: 0.5) == 0.25)
        #expect(curve.density(reaching: 0.6) == 0.25)
        #expect(curve.density(reaching: 0.61) == 0.5)
        #expect(curve.density(reaching: 1) == 1)
    }

    @Test func blocksWithoutMassAreNotNeeded() {
        #expect(MassCurve([0.1, 0.2, 0.7, 0] as [Float]).density(reaching: 1) == 0.75)
        #expect(MassCurve([] as [Float]).density(reaching: 1) == 0)
    }
}
