import Foundation
import PAROAttention
import Testing

/// The snippets of Docs/Papers/PAROAttention.md, with checks of their comments.
@Suite("Snippets: PAROAttention")
struct PAROAttentionSnippets {
    @Test("calibration, files and attention")
    func plans() throws {
        func pattern(_ step: Int) throws -> Tensor<Float> {
            try Tensor([2, 266, 32]) { Float($0 * step % 31) / 16 - 1 }
        }
        let (query, key, value) = (try pattern(7), try pattern(11), try pattern(13))
        let path = NSTemporaryDirectory() + "plan-\(UUID().uuidString).safetensors"
        defer { try? FileManager.default.removeItem(atPath: path) }

        let geometry = try VideoGeometry(frames: 5, height: 6, width: 8, textTokens: 26)
        let shape = try AttentionShape(
            queryLength: geometry.tokens, keyLength: geometry.tokens, queryHeads: 2, kvHeads: 2, headDim: 32)
        var calibration = try PAROAttentionCalibration(shape, geometry: geometry, .init(blockSize: 16))
        try calibration.add(query: query, key: key)  // once per sample
        let plan = try calibration.plan([.density(0.3)])
        print(plan.orders, plan.density)
        try plan.write(to: path)

        let stored = try PAROAttentionPlan(path: path)
        let attention = try stored.attention(shape, step: 12, of: 50)
        let state = try attention(query: query, key: key, value: value)

        #expect(stored == plan && plan.orders.count == 2 && plan.density < 1)
        #expect(state.output.shape == [2, 266, 32] && abs(attention.density - plan.density) < 0.05)
    }
}
