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

        // The errors of the table are those of the layers in the file.
        let x = try Tensor<Float>.normal([24, 72], seed: 0)
        let layer = try SVDQuantLinear(file: output, prefix: "blocks.2.up")
        let (weight, bias) = (try model.floatTensor("blocks.2.up.weight"), try model.floatTensor("blocks.2.up.bias"))
        let y = try layer(x)
        var (difference, norm) = (0.0, 0.0)
        for token in 0..<24 {
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
        #expect(report.outFeatures == 67 && report.inFeatures == 72 && report.rank == 4 && report.tokens == 24)
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
        // What a killed process was writing.
        try Data([1, 2, 3]).write(to: URL(fileURLWithPath: "\(halted.partial)/.sparsekernels-1.tmp"))
        var second = Log()
        try halted.quantizer().run { event throws(SparseKernelsError) in second.note(event) }
        #expect(second.reused == Array(layers.prefix(count)) && second.finished == Array(layers.dropFirst(count)))
        #expect(halted.contents == ["model.safetensors", "out.safetensors"])
        let (expected, actual) = (try SafetensorsFile(path: whole.output), try SafetensorsFile(path: halted.output))
        #expect(expected.tensors == actual.tensors)
        for entry in expected.tensors {
            let (a, b) = (try expected.bytes(entry.name), try actual.bytes(entry.name))
            let isEqual = a.withUnsafeBytes { a in b.withUnsafeBytes { a.elementsEqual($0) } }
            #expect(isEqual, "\(entry.name)")
        }
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
}
