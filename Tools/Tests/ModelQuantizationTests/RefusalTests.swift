import Foundation
import SparseKernels
import SparseKernelsReference
import Testing

@testable import ModelQuantization

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
        try expect(.inputOutput, "missing") {
            _ = try ModelQuantizer(
                model: SafetensorsFile(path: workshop.model), calibration: .gaussian(tokens: 1),
                output: "\(workshop.path)/missing/out.safetensors")
        }
        let beside = try workshop.quantizer()
        // Root may write anywhere, so a file in place of the directory represents one that cannot be written to.
        try Data().write(to: URL(fileURLWithPath: workshop.partial))
        try expect(.inputOutput, "out.safetensors.partial") { _ = try workshop.quantizer() }
        // Later calls are refused too.
        try expect(.inputOutput, "out.safetensors.partial") { try beside.run() }
        try FileManager.default.removeItem(atPath: workshop.partial)
        try FileManager.default.createDirectory(atPath: workshop.output, withIntermediateDirectories: false)
        try expect(.inputOutput, "out.safetensors") { _ = try workshop.quantizer(force: true) }
        try FileManager.default.removeItem(atPath: workshop.output)
        try expect(.inputOutput, "model.safetensors") {
            _ = try ModelQuantizer(
                model: SafetensorsFile(path: workshop.model), calibration: .gaussian(tokens: 1),
                output: "\(workshop.model)/out.safetensors")
        }
        if getuid() != 0 {
            chmod(workshop.path, 0o555)
            defer { chmod(workshop.path, 0o755) }
            try expect(.inputOutput, workshop.path) { _ = try workshop.quantizer() }
        }
    }

    @Test("an output that is the model or the calibration file, under whatever name")
    func inputs() throws {
        let workshop = try Workshop()
        let calibration = "\(workshop.path)/calibration.safetensors"
        var writer = SafetensorsWriter()
        for (layer, width) in [("blocks.1.qkv", 72), ("blocks.2.up", 72), ("blocks.10.down", 67)] {
            try writer.add(layer, Tensor<Float>.normal([5, width], seed: 3))
        }
        try writer.write(to: calibration)
        let link = "\(workshop.path)/link"
        try FileManager.default.createSymbolicLink(atPath: link, withDestinationPath: workshop.path)
        for name in ["model.safetensors", "calibration.safetensors"] {
            for path in ["\(workshop.path)/\(name)", "\(workshop.path)/./\(name)", "\(link)/./\(name)"] {
                try expect(.inputOutput, name) {
                    _ = try ModelQuantizer(
                        model: SafetensorsFile(path: workshop.model), options: Workshop.options,
                        calibration: .file(SafetensorsFile(path: calibration)), output: path, replacesOutput: true)
                }
            }
        }
        try expect(.inputOutput, "out.json") {
            try OutputFile.check("\(link)/out.json", others: [("\(workshop.path)/out.json", "the output")], replaces: true)
        }
        try expect(.inputOutput, "nowhere") { try OutputFile.check("\(workshop.path)/nowhere/a.json", replaces: true) }
    }

    @Test("names that would collide in the output", arguments: ["codes", "scales", "smooth", "down", "up"])
    func collisions(_ part: String) throws {
        let workshop = try Workshop()
        var writer = SafetensorsWriter()
        try writer.add("a.weight", Tensor<Float>.normal([64, 64], seed: 1))
        try writer.add("a.\(part)", Tensor<Float>.normal([3], seed: 1))
        try writer.add("b.\(part)", Tensor<Float>.normal([3], seed: 1))
        try writer.write(to: workshop.model)
        try expect(.invalidArgument, "model.safetensors, tensor \"a.\(part)\"") { _ = try workshop.quantizer() }
        #expect(workshop.contents == ["model.safetensors"])
        // A layer without that tensor does not use its name.
        var options = Workshop.options
        (options.rank, options.smoothing) = (0, .none)
        if !["codes", "scales"].contains(part) {
            try workshop.quantizer(options: options).run()
            #expect(try SafetensorsFile(path: workshop.output)["a.\(part)"] != nil)
        }
    }

    @Test("a disk without room for the finished layers and the output")
    func room() throws {
        let workshop = try Workshop()
        try OutputFile.checkRoom(for: 1000, in: workshop.path, free: 1000)
        try expect(.inputOutput, workshop.path) { try OutputFile.checkRoom(for: 1001, in: workshop.path, free: 1000) }
        try expect(.inputOutput, workshop.path) { try OutputFile.checkRoom(for: .max, in: workshop.path) }
        // The estimate of a layer is not above its size.
        let quantizer = try workshop.quantizer()
        let estimate = quantizer.plan.bytes(ofLayers: 3, Workshop.options)
        try quantizer.run(limit: 3)
        let real = WorkDirectory.bytes(for: workshop.output)
        #expect(estimate > 0 && estimate <= real, "\(estimate) of \(real)")
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
        for type in [ElementType.int8, .float8E8M0, .other("Q8")] {
            var writer = SafetensorsWriter()
            try writer.add("a.weight", Tensor<Float>.normal([64, 64], seed: 1))
            try writer.add("a.bias", elementType: type, shape: [64], bytes: [UInt8](repeating: 0, count: 64))
            try expect(.invalidElementType, "a.bias") {
                _ = try ModelPlan(SafetensorsFile(bytes: writer.encoded()), selection: LayerSelection(), rank: 4)
            }
        }
    }

    @Test("calibration that lacks a layer, or does not fit it, before anything is computed")
    func calibrations() throws {
        let workshop = try Workshop()
        func source(_ shape: [Int], _ type: ElementType = .float32) throws -> CalibrationSource {
            var writer = SafetensorsWriter()
            for layer in ["blocks.1.qkv", "blocks.2.up"] { try writer.add(layer, Tensor<Float>.normal([5, 72], seed: 3)) }
            let bytes = [UInt8](repeating: 0, count: shape.reduce(type.byteCount ?? 1, *))
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
