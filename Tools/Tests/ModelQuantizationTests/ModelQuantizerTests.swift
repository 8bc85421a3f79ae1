import Foundation
import ModelQuantization
import SVDQuant
import SparseKernels
import SparseKernelsReference
import Testing

@Suite("Quantising a model file")
struct ModelQuantizerTests {
    private let layers = ["blocks.1.qkv", "blocks.2.up", "blocks.10.down"]

    @Test("layers become SVDQuant layers, everything else stays as it is, and the work directory goes")
    func completeRun() throws {
        let workshop = try Workshop()
        let reports = try workshop.quantizer().run()
        #expect(workshop.contents == ["model.safetensors", "out.safetensors"])
        let (model, output) = (try SafetensorsFile(path: workshop.model), try SafetensorsFile(path: workshop.output))
        #expect(try SVDQuantLinear.layers(in: output).sorted() == layers.sorted())
        for name in ["embed_tokens.weight", "norm.weight", "step", "tiny.weight"] {
            #expect(output[name]?.elementType == model[name]?.elementType && output[name]?.shape == model[name]?.shape)
            let (old, new) = (try model.bytes(name), try output.bytes(name))
            let isEqual = old.withUnsafeBytes { old in new.withUnsafeBytes { old.elementsEqual($0) } }
            #expect(isEqual, "\(name) changed")
        }
        #expect(output["blocks.2.up.weight"] == nil && output.metadata["origin"] == "test")
        #expect(output.metadata["sparsekernels.tool.calibration"]?.contains("Gaussian") == true)

        // The errors of the table are those of the layers in the file, on the reserved tokens.
        let x = try Tensor<Float>.normal([24, 72], seed: 0)
        let layer = try SVDQuantLinear(file: output, prefix: "blocks.2.up")
        let (weight, bias) = (try model.floatTensor("blocks.2.up.weight"), try model.floatTensor("blocks.2.up.bias"))
        let y = try layer(x)
        var (difference, norm) = (0.0, 0.0)
        for token in stride(from: 3, to: 24, by: 4) {
            for row in 0..<67 {
                let exact = (0..<72).reduce(0.0) { $0 + Double(x[flat: token * 72 + $1]) * Double(weight[flat: row * 72 + $1]) }
                let error = Double(y[flat: token * 67 + row]) - Double(bias[flat: row]) - exact
                difference += error * error
                norm += exact * exact
            }
        }
        let report = try #require(reports.first { $0.layer == "blocks.2.up" })
        #expect(abs(report.outputError - (difference / norm).squareRoot()) < 1e-5)
        #expect(reports.map(\.layer) == layers)
        #expect(report.outFeatures == 67 && report.inFeatures == 72 && report.rank == 4 && report.tokens == 6)
        #expect(report.alpha == 0.5 && report.beta == 0.5 && report.activation == "int4")
        let tensors = output.tensors.filter { $0.name.hasPrefix("blocks.2.up.") && !$0.name.hasSuffix("bias") }
        #expect(report.bytesPerWeight == Double(tensors.reduce(0) { $0 + $1.byteRange.count }) / (67 * 72))
    }

    @Test("a run that was stopped goes on, and ends with the bytes of one that was not", arguments: 0..<3)
    func resuming(stoppedAfter count: Int) throws {
        let (whole, halted) = (try Workshop(), try Workshop())
        try whole.quantizer().run()
        var log = Log()
        #expect(throws: stop) {
            try halted.quantizer().run { event throws(SparseKernelsError) in
                if case .began = event, log.finished.count == count { throw stop }
                log.note(event)
            }
        }
        #expect(halted.bytes(halted.output) == nil)
        // An incomplete file of a killed process.
        try Data([1, 2, 3]).write(to: URL(fileURLWithPath: "\(halted.partial)/.sparsekernels-1.tmp"))
        var second = Log()
        try halted.quantizer().run { event throws(SparseKernelsError) in second.note(event) }
        #expect(second.reused == Array(layers.prefix(count)) && second.finished == Array(layers.dropFirst(count)))
        #expect(halted.contents == ["model.safetensors", "out.safetensors"])
        #expect(halted.bytes(halted.output) == whole.bytes(whole.output))
    }

    @Test("a layer is done again when the options, the calibration or its weight changed")
    func changes() throws {
        let workshop = try Workshop()
        func run(_ quantizer: ModelQuantizer) throws -> Log {
            var log = Log()
            try quantizer.run(limit: 3) { event throws(SparseKernelsError) in log.note(event) }
            return log
        }
        #expect(try run(workshop.quantizer()).finished == layers)
        #expect(try run(workshop.quantizer()).reused == layers)
        var options = Workshop.options
        options.scaleType = .bf16
        #expect(try run(workshop.quantizer(options: options)).finished == layers)
        #expect(try run(workshop.quantizer(options: options, calibration: .gaussian(tokens: 24, seed: 1))).finished == layers)
        #expect(try run(workshop.quantizer(options: options, calibration: .gaussian(tokens: 24, seed: 1))).reused == layers)
        try workshop.writeModel { $0[flat: 9] = 0 }
        let log = try run(workshop.quantizer(options: options, calibration: .gaussian(tokens: 24, seed: 1)))
        #expect(log.reused == Array(layers.dropLast()) && log.finished == ["blocks.10.down"])
        #expect(workshop.bytes(workshop.output) == nil, "a run of some layers writes no output")
    }

    @Test("a damaged file of a finished layer is done again")
    func damagedLayer() throws {
        let workshop = try Workshop()
        try workshop.quantizer().run(limit: 1)
        let file = try #require(FileManager.default.contentsOfDirectory(atPath: workshop.partial).first { $0 != "lock" })
        try Data("not a file".utf8).write(to: URL(fileURLWithPath: "\(workshop.partial)/\(file)"))
        var log = Log()
        try workshop.quantizer().run { event throws(SparseKernelsError) in log.note(event) }
        #expect(log.finished == layers)
    }

    @Test("a weight that is not finite stops the run, names the layer and keeps the layers before it")
    func notFinite() throws {
        let workshop = try Workshop()
        try workshop.writeModel { $0[flat: 5] = .nan }
        let error = try #require(throws: SparseKernelsError.self) { try workshop.quantizer().run() }
        #expect(error.argument.contains("layer \"blocks.10.down\""), "\(error)")
        #expect(error.code == .invalidArgument)
        #expect(workshop.bytes(workshop.output) == nil)
        try workshop.writeModel()
        var log = Log()
        try workshop.quantizer().run { event throws(SparseKernelsError) in log.note(event) }
        #expect(log.reused == ["blocks.1.qkv", "blocks.2.up"])
    }

    private func reports(_ change: (inout QuantizationOptions) -> Void, calibration: CalibrationSource) throws -> [LayerReport]
    {
        var options = Workshop.options
        change(&options)
        let workshop = try Workshop()
        return try withExtendedLifetime(workshop) {
            try workshop.quantizer(options: options, calibration: calibration).run()
        }
    }

    @Test("options do what they say")
    func options() throws {
        let tokens = CalibrationSource.gaussian(tokens: 400)
        let plain = try reports({ _ in }, calibration: tokens)
        for (report, other) in zip(plain, try reports({ $0.activation = .int8 }, calibration: tokens)) {
            #expect(other.activation == "int8" && other.outputError < report.outputError)
        }
        for other in try reports({ $0.smoothing = .none }, calibration: tokens) {
            #expect(other.alpha == nil && other.smoothedError == nil)
        }
        for (report, other) in zip(plain, try reports({ $0.rank = 16 }, calibration: tokens)) {
            #expect(other.rank == 16 && other.outputError < report.outputError && other.bytesPerWeight > report.bytesPerWeight)
        }
        // A shift of 0.17 does not make Gaussian values positive.
        #expect(try reports({ $0.activation = .uint4Shift }, calibration: tokens).allSatisfy { $0.activation == "int4" })
    }

    @Test("GPTQ loses less where channels go together, on tokens that it did not see")
    func gptq() throws {
        var writer = SafetensorsWriter()
        for (layer, width) in [("blocks.1.qkv", 72), ("blocks.2.up", 72), ("blocks.10.down", 67)] {
            let (factors, noise) = (
                try Tensor<Float>.normal([400, 6], seed: 5), try Tensor<Float>.normal([400, width], seed: 6)
            )
            let mixing = try Tensor<Float>.normal([6, width], seed: 7)
            let values = try Tensor<Float>(noise.shape) { index in
                let (token, channel) = (index / width, index % width)
                return (0..<6).reduce(noise[flat: index] / 8) {
                    $0 + factors[flat: token * 6 + $1] * mixing[flat: $1 * width + channel]
                }
            }
            try writer.add(layer, values)
        }
        let calibration = CalibrationSource.file(try SafetensorsFile(bytes: writer.encoded()))
        let rounded = try reports({ $0.activation = .int8 }, calibration: calibration)
        let fitted = try reports({ ($0.activation, $0.method) = (.int8, .gptq) }, calibration: calibration)
        for (a, b) in zip(rounded, fitted) { #expect(b.outputError < a.outputError && b.roundedError == a.roundedError) }
    }

    @Test("layers whose input the shift makes positive get unsigned codes, and lose less")
    func unsignedActivations() throws {
        var writer = SafetensorsWriter()
        for (layer, width) in [("blocks.1.qkv", 72), ("blocks.2.up", 72), ("blocks.10.down", 67)] {
            let normal = try Tensor<Float>.normal([64, width], seed: 9)
            // Values like those after a GELU: positive, or a little below 0.
            let values = layer == "blocks.1.qkv" ? normal : try Tensor(normal.shape) { max(normal[flat: $0], -0.17) }
            try writer.add(layer, values)
        }
        let calibration = CalibrationSource.file(try SafetensorsFile(bytes: writer.encoded()))
        let signed = try reports({ _ in }, calibration: calibration)
        let unsigned = try reports({ $0.activation = .uint4Shift }, calibration: calibration)
        #expect(unsigned.map(\.activation) == ["int4", "uint4", "uint4"])
        for (a, b) in zip(signed, unsigned).dropFirst() {
            #expect(b.outputError < a.outputError && b.roundedError < a.roundedError)
        }
    }

    @Test("a layer of zeros, and one that sees only zeros, are exact")
    func zeros() throws {
        var (model, calibration) = (SafetensorsWriter(), SafetensorsWriter())
        try model.add("dead.weight", Tensor<Float>(zeros: [64, 65]))
        try model.add("blind.weight", Tensor<Float>.normal([64, 65], seed: 1))
        try calibration.add("dead", Tensor<Float>.normal([8, 65], seed: 2))
        try calibration.add("blind", Tensor<Float>(zeros: [8, 65]))
        let workshop = try Workshop()
        try model.write(to: workshop.model)
        let source = CalibrationSource.file(try SafetensorsFile(bytes: calibration.encoded()))
        let reports = try workshop.quantizer(calibration: source).run()
        #expect(reports.map(\.outputError) == [0, 0])
    }
}
