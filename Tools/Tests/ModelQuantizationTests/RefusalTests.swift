import Foundation
import ModelQuantization
import SparseKernels
import SparseKernelsReference
import Testing

@Suite("What quantising refuses")
struct RefusalTests {
    private func expect(_ code: SparseKernelsError.Code, _ argument: String, _ body: () throws -> Void) throws {
        let error = try #require(throws: SparseKernelsError.self) { try body() }
        #expect(error.code == code && error.argument.contains(argument), "\(error)")
    }

    @Test("an output that exists, unless it may be replaced; the model itself, always")
    func outputs() throws {
        let workshop = try Workshop()
        try Data("precious".utf8).write(to: URL(fileURLWithPath: workshop.output))
        try expect(.inputOutput, "out.safetensors") { _ = try workshop.quantizer() }
        #expect(workshop.bytes(workshop.output) == Data("precious".utf8))
        try workshop.quantizer(force: true).run()
        #expect(try SafetensorsFile(path: workshop.output).metadata["format"] == "sparsekernels.svdquant")
        try expect(.inputOutput, "./model.safetensors") {
            _ = try ModelQuantizer(
                model: SafetensorsFile(path: workshop.model), calibration: .gaussian(tokens: 1),
                output: "\(workshop.path)/./model.safetensors", replacesOutput: true)
        }
    }

    @Test("a directory that cannot be written to, or is not there")
    func directories() throws {
        let workshop = try Workshop()
        let missing = try ModelQuantizer(
            model: SafetensorsFile(path: workshop.model), calibration: .gaussian(tokens: 1),
            output: "\(workshop.path)/missing/out.safetensors")
        try expect(.inputOutput, "missing") { try missing.run() }
        // Root may write anywhere, so a file in the place of the directory stands for one that cannot be written to.
        try Data().write(to: URL(fileURLWithPath: workshop.partial))
        try expect(.inputOutput, "out.safetensors.partial") { try workshop.quantizer().run() }
        if getuid() != 0 {
            try FileManager.default.removeItem(atPath: workshop.partial)
            chmod(workshop.path, 0o555)
            defer { chmod(workshop.path, 0o755) }
            try expect(.inputOutput, "out.safetensors.partial") { try workshop.quantizer().run() }
        }
    }

    @Test("a second run on the same output at the same time")
    func twoRuns() throws {
        let workshop = try Workshop()
        try workshop.quantizer().run(limit: 1) { event throws(SparseKernelsError) in
            guard case .began = event else { return }
            do { try expect(.inputOutput, ".partial") { try workshop.quantizer().run() } } catch { Issue.record(error) }
        }
    }

    @Test("models that are damaged or have nothing to quantise")
    func models() throws {
        let workshop = try Workshop()
        let bytes = try #require(workshop.bytes(workshop.model))
        try bytes.dropLast(100).write(to: URL(fileURLWithPath: workshop.model))
        try expect(.malformedFile, "model.safetensors") { _ = try workshop.quantizer() }
        try workshop.writeModel()
        try expect(.notFound, "model.safetensors") {
            _ = try ModelQuantizer(
                model: SafetensorsFile(path: workshop.model), selection: LayerSelection(include: ["nothing.*"]),
                calibration: .gaussian(tokens: 1), output: workshop.output)
        }
        var writer = SafetensorsWriter()
        try writer.add("a.weight", Tensor<Float>.normal([64, 64], seed: 1))
        try writer.add("a.bias", Tensor<Float>.normal([63], seed: 1))
        try expect(.invalidShape, "a.bias") {
            _ = try ModelPlan(SafetensorsFile(bytes: writer.encoded()), selection: LayerSelection(), rank: 4)
        }
    }

    @Test("calibration that lacks a layer, or does not fit it, before anything is computed")
    func calibrations() throws {
        let workshop = try Workshop()
        func source(_ shape: [Int], _ type: ElementType = .float32) throws -> CalibrationSource {
            var writer = SafetensorsWriter()
            for layer in ["blocks.1.qkv", "blocks.2.up"] { try writer.add(layer, Tensor<Float>.normal([5, 72], seed: 3)) }
            let bytes = [UInt8](repeating: 0, count: shape.reduce(type.byteCount, *))
            try writer.add("blocks.10.down", elementType: type, shape: shape, bytes: bytes)
            return .file(try SafetensorsFile(bytes: writer.encoded(), named: "calibration"))
        }
        _ = try workshop.quantizer(calibration: source([5, 67]))
        try expect(.invalidShape, "blocks.10.down") { _ = try workshop.quantizer(calibration: source([5, 72])) }
        try expect(.invalidShape, "blocks.10.down") { _ = try workshop.quantizer(calibration: source([0, 67])) }
        try expect(.invalidElementType, "blocks.10.down") { _ = try workshop.quantizer(calibration: source([5, 67], .int32)) }
        let empty = try SafetensorsFile(bytes: SafetensorsWriter().encoded(), named: "calibration")
        try expect(.notFound, "blocks.1.qkv") { _ = try workshop.quantizer(calibration: .file(empty)) }
        try expect(.invalidArgument, "calibration tokens") { _ = try workshop.quantizer(calibration: .gaussian(tokens: 0)) }
        #expect(workshop.contents == ["model.safetensors"])
    }

    @Test("options that no layer can have")
    func options() throws {
        let workshop = try Workshop()
        var options = Workshop.options
        options.rank = -1
        try expect(.invalidArgument, "rank") { _ = try workshop.quantizer(options: options) }
        #expect(workshop.contents == ["model.safetensors"])
    }
}
