import FrameFusion
import SparseKernelsReference
import TestSupport
import Testing

@Suite("FrameFusion")
struct FrameFusionTests {
    @Test("the budget of the paper")
    func budget() throws {
        let configuration = try FrameFusionConfiguration()
        // 28 layers of 0.3 are 8.4; without a reduction before, every layer must see 0.3.
        #expect(abs(try configuration.requiredRemoval(after: []) - 0.7) < 1e-12)
        // A half removed before layer 0: 27 layers share 8.4 − 0.5 of a half each.
        #expect(abs(try configuration.requiredRemoval(after: [0.5]) - (1 - 7.9 / 13.5)) < 1e-12)
        // Nothing need be removed when less than the budget is left.
        #expect(try configuration.requiredRemoval(after: [0.8]) == 0)
        #expect(try FrameFusionConfiguration(cost: 1).requiredRemoval(after: []) == 0)
        expectError(.invalidArgument, "cost", containing: "9 layers", "0.3") {
            _ = try configuration.requiredRemoval(after: Array(repeating: 0, count: 9))
        }
        expectError(.invalidArgument, "cost") { _ = try FrameFusionConfiguration(cost: 0) }
        expectError(.invalidArgument, "similarity") { _ = try FrameFusionConfiguration(similarity: .nan) }
        expectError(.invalidArgument, "leastMerged") { _ = try FrameFusionConfiguration(leastMerged: 1.5) }
        expectError(.invalidArgument, "layers") { _ = try FrameFusionConfiguration(layers: 0) }
    }

    /// Frames whose first `still` places hardly change, and text around them.
    static func video(
        frames: Int, places: Int, still: Int, channels: Int
    ) throws -> (hidden: Tensor<Float>, tokens: FrameFusionTokens) {
        let tokens = try FrameFusionTokens(textBefore: 3, frames: frames, placesPerFrame: places, textAfter: 2)
        var hidden = try Tensor<Float>.normal([tokens.count, channels], seed: 1)
        for frame in 1..<max(1, frames) {
            for place in 0..<still {
                for channel in 0..<channels {
                    let noise = hidden[3 + frame * places + place, channel]
                    hidden[3 + frame * places + place, channel] = hidden[3 + place, channel] + 0.05 * noise
                }
            }
        }
        return (hidden, tokens)
    }

    @Test("still places are merged, then what gets least attention is pruned until the budget is met")
    func phases() throws {
        // 8 frames of 10 places, of which 4 are still: 28 of 80 tokens merge.
        var (hidden, tokens) = try Self.video(frames: 8, places: 10, still: 4, channels: 32)
        let before = hidden
        var fusion = try FrameFusion(channels: 32)
        #expect(fusion.phase == .merging && !fusion.needsColumnMass && tokens.visualCount == 80)
        let first = try fusion.reduce(&hidden, tokens: &tokens)
        #expect(fusion.removed == [0.35] && fusion.phase == .merging)
        #expect(tokens.visualCount == 52 && hidden.shape == [57, 32])
        // The mean of a place over all frames, in the place of its first token.
        for channel in 0..<32 {
            let mean = (0..<8).reduce(0.0) { $0 + Double(before[3 + 10 * $1 + 2, channel]) } / 8
            #expect(abs(Double(hidden[5, channel]) - mean) < 1e-6)
        }
        // Text is untouched, and positions are kept.
        #expect(first.kept.prefix(3) == [0, 1, 2] && first.kept.suffix(2) == [83, 84])
        #expect(tokens.positions == first.kept.map { Int($0) })

        // Nothing is similar any more, so that merging ends.
        _ = try fusion.reduce(&hidden, tokens: &tokens)
        #expect(fusion.removed == [0.35, 0] && fusion.needsColumnMass && tokens.visualCount == 52)

        // The budget: 28 · 0.3 − 2 · 0.65 is left for 26 layers of 0.65.
        let needed = 1 - (8.4 - 1.3) / (26 * 0.65)
        let count = Int((52 * (1 - needed)).rounded(.toNearestOrEven))
        let mass = try Tensor<Float>([1, tokens.count]) { Float(($0 * 37) % 57) }
        let positions = tokens.positions
        let last = try fusion.reduce(&hidden, tokens: &tokens, columnMass: mass)
        #expect(fusion.isFinished && tokens.visualCount == count && tokens.count == count + 5)
        let visual = (3..<55).sorted { mass[0, $0] > mass[0, $1] }.prefix(count)
        #expect(last.kept.map { Int($0) } == ([0, 1, 2, 55, 56] + visual).sorted())
        #expect(tokens.positions == last.kept.map { positions[Int($0)] })
        let spent = 2 * 0.65 + 26 * Double(count) / 80
        #expect(abs(spent / 28 - 0.3) < 26 / 28 / 80.0)

        // Nothing happens afterwards.
        let rest = try fusion.reduce(&hidden, tokens: &tokens)
        #expect(rest.kept.count == tokens.count && fusion.removed.count == 3)
    }

    @Test("when similarity exceeds the budget, the most similar tokens merge, and nothing follows")
    func topK() throws {
        // 9 of 10 places are still: 81 of 100 tokens could merge, and 70 must.
        var (hidden, tokens) = try Self.video(frames: 10, places: 10, still: 9, channels: 24)
        let chains = try FrameChains(places: tokens.places)
        let similarities = try FrameMerge(channels: 24).similarities(hidden, chains)
        var fusion = try FrameFusion(channels: 24)
        let merged = try Int(100 * fusion.configuration.requiredRemoval(after: []))
        #expect(merged == 70 || merged == 69)
        let compaction = try fusion.reduce(&hidden, tokens: &tokens)
        #expect(fusion.isFinished && tokens.visualCount == 100 - merged)
        let ranked = (0..<105).sorted {
            (similarities[flat: $0], -$0) > (similarities[flat: $1], -$1)
        }.prefix(merged)
        #expect(Set(compaction.kept.map { Int($0) }) == Set(0..<105).subtracting(ranked))
    }

    @Test("videos without frames, of one frame, and threads")
    func edges() throws {
        var text = try FrameFusionTokens(places: [-1, -1, -1])
        var hidden = try Tensor<Float>.normal([3, 8], seed: 2)
        var fusion = try FrameFusion(channels: 8)
        #expect(try fusion.reduce(&hidden, tokens: &text).kept.count == 3)
        #expect(try fusion.reduce(&hidden, tokens: &text, columnMass: Tensor(zeros: [3])).kept.count == 3)
        #expect(fusion.isFinished)
        var (one, tokens) = try Self.video(frames: 1, places: 6, still: 0, channels: 8)
        fusion = try FrameFusion(channels: 8)
        #expect(try fusion.reduce(&one, tokens: &tokens).kept.count == 11)
        #expect(fusion.needsColumnMass)
        var expected: [Float] = []
        let original = try Self.video(frames: 30, places: 49, still: 20, channels: 128)
        for threads in [1, 2, 7] {
            for set in InstructionSet.available {
                var (video, tokens) = original
                var fusion = try FrameFusion(channels: 128, instructionSet: set)
                _ = try fusion.reduce(&video, tokens: &tokens, on: WorkerPool(threads: threads))
                // Sums of a run are in one order on every level.
                if expected.isEmpty { expected = video.elements }
                #expect(video.elements == expected)
            }
        }
    }

    @Test("bad input is a typed error, and changes nothing")
    func errors() throws {
        expectError(.invalidShape, "positions") { _ = try FrameFusionTokens(places: [0], positions: []) }
        expectError(.invalidArgument, "frames") {
            _ = try FrameFusionTokens(textBefore: 0, frames: -1, placesPerFrame: 4, textAfter: 0)
        }
        expectError(.invalidShape, "channels") { _ = try FrameFusion(channels: 0) }
        var (hidden, tokens) = try Self.video(frames: 3, places: 4, still: 0, channels: 64)
        let (oldHidden, oldTokens) = (hidden, tokens)
        var fusion = try FrameFusion(channels: 65)
        expectError(.invalidShape, "hidden", containing: "[17, 65]", "[17, 64]") {
            _ = try fusion.reduce(&hidden, tokens: &tokens)
        }
        fusion = try FrameFusion(channels: 64)
        _ = try fusion.reduce(&hidden, tokens: &tokens)
        expectError(.invalidArgument, "columnMass") { _ = try fusion.reduce(&hidden, tokens: &tokens) }
        expectError(.invalidShape, "columnMass", containing: "[1, 17]") {
            _ = try fusion.reduce(&hidden, tokens: &tokens, columnMass: Tensor(zeros: [16]))
        }
        let broken = try Tensor<Float>([17]) { $0 == 4 ? .nan : 1 }
        expectError(.invalidArgument, "columnMass", containing: "token 4") {
            _ = try fusion.reduce(&hidden, tokens: &tokens, columnMass: broken)
        }
        // NaN similarities where they are ranked: everything else is still.
        var (still, places) = try Self.video(frames: 10, places: 10, still: 10, channels: 64)
        still[20, 3] = .nan
        var ranked = try FrameFusion(channels: 64)
        expectError(.invalidArgument, "similarities[20]") { _ = try ranked.reduce(&still, tokens: &places) }
        #expect(ranked.phase == .merging && places.count == 105)
        #expect(hidden == oldHidden && tokens == oldTokens && fusion.needsColumnMass)
        // A budget that the layers before have used up.
        var late = try FrameFusion(FrameFusionConfiguration(cost: 0.01), channels: 64)
        var (video, videoTokens) = try Self.video(frames: 3, places: 4, still: 0, channels: 64)
        _ = try late.reduce(&video, tokens: &videoTokens)
        expectError(.invalidArgument, "cost") {
            _ = try late.reduce(&video, tokens: &videoTokens, columnMass: Tensor(zeros: [17]))
        }
    }
}
