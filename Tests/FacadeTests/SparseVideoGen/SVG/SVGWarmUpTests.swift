import SparseVideoGen
import TestSupport
import Testing

@Suite("Warm-up of Sparse VideoGen")
struct SVGWarmUpTests {
    @Test("ratios become the first layers and steps")
    func ratios() throws {
        let warmUp = try SVGWarmUp(layers: 40, steps: 50, layerRatio: 0.03, stepRatio: 0.25)
        #expect(warmUp.denseLayers == 1 && warmUp.denseSteps == 12 && warmUp.timestepThreshold == nil)
        #expect(warmUp.isDense(layer: 0, step: 49) && warmUp.isDense(layer: 39, step: 11))
        #expect(!warmUp.isDense(layer: 1, step: 12))
        #expect(warmUp.isDense(layer: 0, timestep: 1) && !warmUp.isDense(layer: 1, timestep: 1000))
        let counts = try SVGWarmUp(denseLayers: 2, denseSteps: 0)
        #expect(counts.isDense(layer: 1, step: 9) && !counts.isDense(layer: 2, step: 0))
        let all = try SVGWarmUp(layers: 3, steps: 4, layerRatio: 0, stepRatio: 1)
        #expect(all.isDense(layer: 2, step: 3))
    }

    @Test("Wan's and Hunyuan's rule: the first n timesteps, and those that follow closely")
    func flowRules() throws {
        let timesteps = (0..<50).map { 1000 - Double($0) * 20 }
        for model in [SVGModel.wan, .hunyuanVideo] {
            let warmUp = try SVGWarmUp(released: model, layers: 60, timesteps: timesteps, layerRatio: 0.025, stepRatio: 0.075)
            #expect(warmUp.denseLayers == 1 && warmUp.denseSteps == 3 && warmUp.timestepThreshold == 959)
            for step in 0..<50 {
                #expect(warmUp.isDense(layer: 1, step: step) == warmUp.isDense(layer: 1, timestep: timesteps[step]))
                #expect(warmUp.isDense(layer: 1, step: step) == (step < 3))
            }
            let none = try SVGWarmUp(released: model, layers: 60, timesteps: timesteps, layerRatio: 0, stepRatio: 0.01)
            #expect(none.denseSteps == 0 && none.timestepThreshold == 1001 && !none.isDense(layer: 0, timestep: 1000))
        }
        // A strong shift crowds the first steps: those within 1 of the last dense one are dense too.
        let crowded = [999.9, 999.5, 999.2, 998.8, 998, 900, 500]
        let warmUp = try SVGWarmUp(released: .wan, layers: 10, timesteps: crowded, layerRatio: 0, stepRatio: 0.3)
        #expect(warmUp.denseSteps == 4)
    }

    @Test("Cog's rule compares with the ratios themselves")
    func cogRule() throws {
        let timesteps = (0..<50).map { 999 - Double($0) * 20 }
        let warmUp = try SVGWarmUp(
            released: .cogVideoX, layers: 42, timesteps: timesteps, layerRatio: 0.025, stepRatio: 0.2)
        // 42 · 0.025 = 1.05, so layers 0 and 1.
        #expect(warmUp.denseLayers == 2 && warmUp.timestepThreshold == 800 && warmUp.denseSteps == 10)
        #expect(warmUp.isDense(layer: 5, timestep: 800.5) && !warmUp.isDense(layer: 5, timestep: 800))
    }

    @Test("numbers outside their domain are errors that name them")
    func badInput() throws {
        expectError(.invalidArgument, "denseLayers") { _ = try SVGWarmUp(denseLayers: -1, denseSteps: 0) }
        expectError(.invalidArgument, "denseSteps") { _ = try SVGWarmUp(denseLayers: 0, denseSteps: -1) }
        for ratio in [-0.1, 1.1, .nan] {
            expectError(.invalidArgument, "layerRatio") {
                _ = try SVGWarmUp(layers: 1, steps: 1, layerRatio: ratio, stepRatio: 0)
            }
            expectError(.invalidArgument, "stepRatio") {
                _ = try SVGWarmUp(released: .wan, layers: 1, timesteps: [1], layerRatio: 0, stepRatio: ratio)
            }
        }
        expectError(.invalidArgument, "layers") { _ = try SVGWarmUp(layers: .max, steps: 1, layerRatio: 1, stepRatio: 0) }
        expectError(.invalidArgument, "steps") { _ = try SVGWarmUp(layers: 1, steps: .max, layerRatio: 1, stepRatio: 1) }
        for timesteps in [[1, .nan], [1, 2], [1, -.infinity]] as [[Double]] {
            expectError(.invalidArgument, "timesteps[1]") {
                _ = try SVGWarmUp(released: .wan, layers: 1, timesteps: timesteps, layerRatio: 0, stepRatio: 0)
            }
        }
    }
}
