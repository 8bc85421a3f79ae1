import STORM
import SparseKernelsReference
import TestSupport
import Testing

@Suite("STORM: temporal encoder")
struct STORMTests {
    static func direction(_ c: STORMConfiguration, seed: UInt64) throws -> STORMDirectionWeights {
        let inner = c.innerWidth
        return try STORMDirectionWeights(
            convolution: .normal([inner, c.convolutionWidth], seed: seed, scale: 0.5),
            convolutionBias: .normal([inner], seed: seed + 1),
            projection: .normal([c.dtRank + 2 * c.stateSize, inner], seed: seed + 2, scale: 0.2),
            stepProjection: .normal([inner, c.dtRank], seed: seed + 3), stepBias: .normal([inner], seed: seed + 4),
            aLog: .normal([inner, c.stateSize], seed: seed + 5), skip: .normal([inner], seed: seed + 6))
    }

    static func weights(_ c: STORMConfiguration, seed: UInt64) throws -> STORMLayerWeights {
        let inner = c.innerWidth
        return try STORMLayerWeights(
            normWeight: .normal([c.width], seed: seed), normBias: .normal([c.width], seed: seed + 1),
            inputProjection: .normal([2 * inner, c.width], seed: seed + 2, scale: 0.3), forward: direction(c, seed: seed + 10),
            backward: c.combination.hasBackwardWeights ? direction(c, seed: seed + 20) : nil,
            outputProjection: .normal(
                [c.width, c.combination == .concatenation ? 2 * inner : inner], seed: seed + 3, scale: 0.2))
    }

    static func encoder(
        _ combination: STORMCombination, layers: Int = 2, _ set: InstructionSet? = nil
    ) throws -> STORMEncoder {
        let configuration = STORMConfiguration(width: 12, layers: layers, stateSize: 5, combination: combination)
        let weights = try (0..<layers).map { try Self.weights(configuration, seed: UInt64(100 * $0)) }
        return try STORMEncoder(weights, configuration, instructionSet: set)
    }

    static func encoded(
        _ encoder: STORMEncoder, _ x: Tensor<Float>, _ batch: PackedSequences? = nil, _ states: STORMStates? = nil,
        on pool: WorkerPool = .serial
    ) throws -> [Float] {
        var x = x
        let states = try states ?? encoder.makeStates(slots: 3)
        try encoder.run(&x, batch: batch ?? PackedSequences(lengths: [x.shape[0]]), states: states, on: pool)
        return x.elements
    }

    @Test("a stream of frames in parts is the stream at once", arguments: InstructionSet.available)
    func streaming(_ set: InstructionSet) throws {
        let encoder = try Self.encoder(.forwardOnly, set)
        let x = try Tensor<Float>.normal([40, 12], seed: 1)
        let whole = try Self.encoded(encoder, x)
        let states = try encoder.makeStates()
        var parts: [Float] = []
        for range in [0..<16, 16..<32, 32..<33, 33..<40] {
            let part = try Tensor([range.count, 12], Array(x.elements[range.lowerBound * 12..<range.upperBound * 12]))
            parts += try Self.encoded(encoder, part, nil, states)
        }
        // Products with one row sum in another order.
        for (a, b) in zip(parts, whole) { #expect(abs(a - b) <= 1e-4 * max(1, abs(b))) }
        try states.reset(0)
        let first = try Tensor([16, 12], Array(x.elements[..<192]))
        #expect(try Self.encoded(encoder, first, nil, states) == Array(parts[..<192]))
    }

    @Test("videos of a batch do not see each other, nor the call before", arguments: STORMCombination.allCases)
    func batches(_ combination: STORMCombination) throws {
        let encoder = try Self.encoder(combination)
        let x = try Tensor<Float>.normal([40, 12], seed: 1)
        let states = try encoder.makeStates(slots: 3)
        for _ in 0..<2 {
            let both = try Self.encoded(encoder, x, PackedSequences(lengths: [25, 15], slots: [2, 0]), states)
            for range in [0..<25, 25..<40] {
                let part = try Tensor([range.count, 12], Array(x.elements[range.lowerBound * 12..<range.upperBound * 12]))
                #expect(try Self.encoded(encoder, part) == Array(both[range.lowerBound * 12..<range.upperBound * 12]))
            }
            if !combination.isBidirectional { for slot in 0..<3 { try states.reset(slot) } }
        }
    }

    @Test("threads do not change bits", arguments: STORMCombination.allCases)
    func threads(_ combination: STORMCombination) throws {
        let encoder = try Self.encoder(combination)
        let x = try Tensor<Float>.normal([300, 12], seed: 1)
        let first = try Self.encoded(encoder, x)
        for threads in [2, 7] { #expect(try Self.encoded(encoder, x, on: WorkerPool(threads: threads)) == first) }
    }

    @Test("weights of a file are those of tensors")
    func file() throws {
        let configuration = STORMConfiguration(width: 12, layers: 2, stateSize: 5)
        var writer = SafetensorsWriter()
        var weights: [STORMLayerWeights] = []
        for layer in 0..<2 {
            let parameters = try Self.weights(configuration, seed: UInt64(100 * layer))
            weights.append(parameters)
            let prefix = "layers.\(layer)"
            try writer.add("\(prefix).norm.weight", parameters.normWeight)
            try writer.add("\(prefix).norm.bias", parameters.normBias)
            try writer.add("\(prefix).in_proj.weight", parameters.inputProjection)
            try writer.add("\(prefix).out_proj.weight", parameters.outputProjection)
            for (name, direction) in [("forward", parameters.forward), ("backward", parameters.backward!)] {
                let path = "\(prefix).\(name)"
                // As Mamba stores it.
                try writer.add("\(path).conv1d.weight", Tensor([24, 1, 4], direction.convolution.elements))
                try writer.add("\(path).conv1d.bias", direction.convolutionBias)
                try writer.add("\(path).x_proj.weight", direction.projection)
                try writer.add("\(path).dt_proj.weight", direction.stepProjection)
                try writer.add("\(path).dt_proj.bias", direction.stepBias)
                try writer.add("\(path).A_log", direction.aLog)
                try writer.add("\(path).D", direction.skip)
            }
        }
        let folder = try TemporaryDirectory()
        let path = folder.path + "/storm.safetensors"
        try writer.write(to: path)
        let file = try SafetensorsFile(path: path)
        let x = try Tensor<Float>.normal([20, 12], seed: 1)
        #expect(try Self.encoded(STORMEncoder(file, configuration), x) == Self.encoded(STORMEncoder(weights, configuration), x))
        var more = configuration
        more.layers = 3
        expectError(.notFound, describing: "layers.2.norm.weight") { _ = try STORMEncoder(file, more) }
    }

    @Test("errors name the tensor and both shapes, and leave tokens as they were")
    func errors() throws {
        var configuration = STORMConfiguration(width: 12, stateSize: 5)
        let weights = try Self.weights(configuration, seed: 1)
        expectError(.invalidShape, "weights", containing: "1 layers", "2") {
            _ = try STORMEncoder([weights, weights], configuration)
        }
        var other = weights
        other.backward = nil
        expectError(.notFound, "backward") { _ = try STORMEncoder([other], configuration) }
        other = weights
        other.forward.aLog = try .init(zeros: [24, 6])
        expectError(.invalidShape, "forward.aLog", containing: "[24, 5]", "[24, 6]") {
            _ = try STORMEncoder([other], configuration)
        }
        configuration.combination = .concatenation
        expectError(.invalidShape, "outputProjection", containing: "[12, 48]", "[12, 24]") {
            _ = try STORMEncoder([weights], configuration)
        }
        expectError(.invalidArgument, "layers", containing: "0") {
            _ = try STORMEncoder([], STORMConfiguration(width: 12, layers: 0))
        }
        let encoder = try Self.encoder(.sumSeparate)
        let states = try encoder.makeStates()
        var x = try Tensor<Float>.normal([6, 11], seed: 1)
        expectError(.invalidShape, "x", containing: "[6, 12]", "[6, 11]") { try encoder.run(&x, states: states) }
        x = try Tensor<Float>.normal([6, 12], seed: 1)
        let before = x
        let foreign = try Self.encoder(.forwardOnly).makeStates()
        expectError(.invalidShape, "states") { try encoder.run(&x, states: foreign) }
        expectError(.invalidArgument, "slots[0]", containing: "0 to 0", "1") {
            try encoder.run(&x, batch: PackedSequences(lengths: [6], slots: [1]), states: states)
        }
        expectError(.invalidArgument, "slots", containing: "0") { _ = try encoder.makeStates(slots: 0) }
        #expect(x == before)
        x = try .init(zeros: [0, 12])
        try encoder.run(&x, states: states)
    }

    @Test("tails of frames, rows and columns are averaged over what is there")
    func reduction() throws {
        let x = try Tensor<Float>([5, 3, 5, 17]) { Float($0 % 97) }
        for (k, p, s) in [(1, 1, 1), (2, 1, 1), (4, 2, 1), (1, 2, 3), (3, 3, 2), (9, 9, 9), (2, 1, 4)] {
            let reduction = try STORMTokenReduction(temporalPool: k, spatialPool: p, samplingRate: s)
            let y = try reduction(x)
            let frames = reduction.sampledFrames(of: 5)
            #expect(y.shape == [frames.count, (3 + p - 1) / p, (5 + p - 1) / p, 17])
            for f in 0..<y.shape[0] {
                for row in 0..<y.shape[1] {
                    for column in 0..<y.shape[2] {
                        let source = (frames[f] * k..<min(5, frames[f] * k + k)).flatMap { frame in
                            (row * p..<min(3, row * p + p)).flatMap { r in
                                (column * p..<min(5, column * p + p)).map { (frame * 3 + r) * 5 + $0 }
                            }
                        }
                        for channel in 0..<17 {
                            let mean = source.reduce(0) { $0 + Double(x[flat: $1 * 17 + channel]) } / Double(source.count)
                            let value = Double(y[flat: ((f * y.shape[1] + row) * y.shape[2] + column) * 17 + channel])
                            #expect(abs(value - mean) <= 1e-5)
                        }
                    }
                }
            }
            var again = try Tensor<Float>(zeros: y.shape)
            try reduction.run(x, into: &again, on: WorkerPool(threads: 7))
            #expect(again == y)
        }
        #expect(try STORMTokenReduction(temporalPool: .max, samplingRate: .max)(x).shape == [1, 3, 5, 17])
        #expect(try STORMTokenReduction(temporalPool: 4)(Tensor<Float>(zeros: [0, 3, 5, 17])).shape == [0, 3, 5, 17])
        expectError(.invalidArgument, "temporalPool", containing: "0") { _ = try STORMTokenReduction(temporalPool: 0) }
        expectError(.invalidShape, "x", containing: "[4, 3]") { _ = try STORMTokenReduction()(Tensor<Float>(zeros: [4, 3])) }
        var wrong = try Tensor<Float>(zeros: [5, 3, 5, 16])
        expectError(.invalidShape, "y", containing: "[5, 3, 5, 17]", "[5, 3, 5, 16]") {
            try STORMTokenReduction().run(x, into: &wrong)
        }
    }
}
