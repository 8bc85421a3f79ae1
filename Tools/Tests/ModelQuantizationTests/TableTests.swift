import Foundation
import SparseKernels
import SparseKernelsReference
import Testing

@testable import ModelQuantization

@Suite("Plans, tables and listings")
struct TableTests {
    @Test("a plan names every tensor once, layers in the order of their numbers")
    func plan() throws {
        let workshop = try Workshop()
        let file = try SafetensorsFile(path: workshop.model)
        let plan = try ModelPlan(file, selection: LayerSelection(), rank: 4)
        #expect(plan.layers.map(\.name) == ["blocks.1.qkv", "blocks.2.up", "blocks.10.down"])
        #expect(plan.layers.map(\.hasBias) == [false, true, false])
        let reasons = Dictionary(uniqueKeysWithValues: plan.copied.map { ($0.entry.name, $0.reason) })
        #expect(
            reasons == [
                "embed_tokens.weight": "excluded by *embed*",
                "norm.weight": "rank 1, and the weight of a linear layer has 2",
                "step": "its name does not end in .weight", "tiny.weight": "fewer than 64 features",
            ])
        #expect(plan.lines.count == 3 + 4 + 1 && plan.lines.last == "3 layers to quantise, 4 tensors of 31400 bytes to copy")
        #expect(plan.lines.contains("copy      embed_tokens.weight  [100, 72] F32, 28800 bytes: excluded by *embed*"))
        #expect(plan.lines[1] == "quantise  blocks.2.up  67 × 72 BF16, bias")

        let some = LayerSelection(include: ["blocks.*", "tiny"], exclude: ["*.[ud]*"], minimumFeatures: 1)
        #expect(try ModelPlan(file, selection: some, rank: 4).layers.map(\.name) == ["blocks.1.qkv", "tiny"])
        let wide = try ModelPlan(file, selection: LayerSelection(exclude: []), rank: 70)
        #expect(wide.layers.map(\.name) == ["blocks.1.qkv", "embed_tokens"])
    }

    @Test("a model in which nothing is selected has a reason for each tensor")
    func nothingSelected() throws {
        var writer = SafetensorsWriter()
        try writer.add("a.weight", elementType: .float8E4M3, shape: [64, 64], bytes: [UInt8](repeating: 0, count: 4096))
        try writer.add("b.weight", elementType: .other("Q4_0"), shape: [64, 64], bytes: [1, 2])
        try writer.add("c.weight", Tensor<Float>(zeros: [64, 64, 3, 3]))
        try writer.add("d.weight", Tensor<Float>(zeros: [70, 70]))
        try writer.add("e.kernel", Tensor<Float>(zeros: [70, 70]))
        try writer.add("f.weight", Tensor<Float>(zeros: [128, 128]))
        let file = try SafetensorsFile(bytes: writer.encoded(), named: "nothing.safetensors")
        let plan = try ModelPlan(file, selection: LayerSelection(include: ["[a-e]"]), rank: 100)
        let reasons = Dictionary(uniqueKeysWithValues: plan.copied.map { ($0.entry.name, $0.reason) })
        #expect(
            reasons == [
                "a.weight": "element type F8_E4M3, not F32, F16 or BF16", "b.weight": "element type Q4_0, not F32, F16 or BF16",
                "c.weight": "rank 4, and the weight of a linear layer has 2",
                "d.weight": "no more features than the rank of 100", "e.kernel": "its name does not end in .weight",
                "f.weight": "matches no pattern to include",
            ])
        for (name, reason) in reasons {
            #expect(plan.lines.contains { $0.hasPrefix("copy      \(name) ") && $0.hasSuffix(": \(reason)") })
        }
        let error = #expect(throws: SparseKernelsError.self) { try plan.requireLayers(of: file) }
        #expect(error?.code == .notFound && error?.argument == "nothing.safetensors")
    }

    @Test("long names do not widen the tables, and stay different")
    func longNames() throws {
        let names = (0..<30).map { "model.language_model.encoder.transformer.layers.\($0).self_attention.out_proj" }
        var writer = SafetensorsWriter()
        for name in names { try writer.add("\(name).weight", Tensor<Float>(zeros: [64, 64])) }
        let file = try SafetensorsFile(bytes: writer.encoded(), named: "long")
        let plan = try ModelPlan(file, selection: LayerSelection(), rank: 4)
        let table = LayerTable(layers: plan.layers)
        let lines = names.map { name in
            var report = report
            report.layer = name
            return table.line(report, isReused: false)
        }
        #expect(table.header.allSatisfy { $0.count <= 120 } && Set((table.header + lines).map(\.count)).count == 1)
        #expect(Set(names.map(table.name)).count == 30 && Set(lines).count == 30)
        let listing = ModelListing(file).lines
        #expect(listing.allSatisfy { $0.count <= 120 } && Set(listing).count == listing.count)
        let full = ModelListing(file, showsFullNames: true).lines
        #expect(names.allSatisfy { name in full.contains { $0.contains("\(name).weight") } })
    }

    @Test("layers with more than half of their output wrong are named")
    func uselessLayers() throws {
        let table = LayerTable(layers: [])
        var reports = [report, report, report, report]
        #expect(table.warning(reports) == nil && table.warning([]) == nil)
        reports[1].outputError = 0.5
        #expect(table.warning(reports) == nil)
        (reports[1].layer, reports[1].outputError) = ("a", 0.712)
        (reports[3].layer, reports[3].outputError) = ("b", .nan)
        let line = try #require(table.warning(reports))
        #expect(
            line.hasPrefix("2 of 4 layers ended with an error above 50 % of their output")
                && line.contains("a (71.2 %), b (nan %)"))
        #expect(!line.contains("\n"))
        // An error that is not a number is still a row of the file.
        let read = try JSONDecoder.reports.decode([LayerReport].self, from: JSONEncoder.reports.encode(reports))
        #expect(read[3].outputError.isNaN && read[1] == reports[1])
    }

    private let report = LayerReport(
        layer: "model.layers.0.mlp.down_proj", outFeatures: 512, inFeatures: 1408, rank: 32, activation: "int4",
        bytesPerWeight: 0.7031, alpha: 0.5, beta: 0.25, tokens: 512, roundedError: 0.1234, smoothedError: 0.101,
        outputError: 0.0567,
        seconds: 1.26)

    @Test("lines of the table have the width of the header")
    func table() throws {
        let workshop = try Workshop()
        let table = LayerTable(layers: try workshop.quantizer().plan.layers)
        var report = report
        report.layer = "blocks.2.up"
        let line = table.line(report, isReused: false)
        #expect(
            line == "blocks.2.up        512 × 1408    32   int4     0.703  0.50  0.25     12.3     10.1       5.7     1.3")
        #expect(Set((table.header + [line]).map(\.count)).count == 1)
        #expect(table.line(report, isReused: true).hasSuffix("  (1.3)"))
        report.alpha = nil
        report.smoothedError = nil
        #expect(table.line(report, isReused: false).count == line.count)
        let other = LayerReport(
            layer: "b", outFeatures: 512, inFeatures: 1408, rank: 32, activation: "int4", bytesPerWeight: 0.5031, tokens: 512,
            roundedError: 0.2, outputError: 0.1, seconds: 1)
        let words = table.summary([report, other]).split(separator: " ")
        #expect(words == ["all", "2", "0.603", "16.2", "7.8", "2.3"])
        report.layer = "evil\u{1B}[31m\n"
        #expect(table.line(report, isReused: false).hasPrefix("evil\\u{1B}[31m\\n"))
    }

    @Test("the table as JSON reads back")
    func json() throws {
        let workshop = try Workshop()
        let quantizer = try workshop.quantizer()
        let table = QuantizationReport(quantizer, layers: try quantizer.run())
        let path = "\(workshop.path)/table.json"
        try table.write(to: path)
        let read = try JSONDecoder().decode(QuantizationReport.self, from: try #require(workshop.bytes(path)))
        #expect(read == table && read.layers.count == 3 && read.calibration.contains("SYNTHETIC"))
        let error = try #require(throws: SparseKernelsError.self) { try table.write(to: "\(workshop.path)/missing/table.json") }
        #expect(error.code == .inputOutput)
    }

    @Test("a listing has a line per layer and one per other tensor")
    func listing() throws {
        let workshop = try Workshop()
        try workshop.quantizer().run()
        let plain = ModelListing(try SafetensorsFile(path: workshop.model)).lines
        #expect(plain.count == 1 + 2 + 8 && plain[0].contains("8 tensors"))
        #expect(plain.contains { $0.split(separator: " ").prefix(4) == ["blocks.2.up.weight", "BF16", "[67,", "72]"] })

        let lines = ModelListing(try SafetensorsFile(path: workshop.output), showsMetadata: true).lines
        let layer = try #require(lines.first { $0.hasPrefix("blocks.2.up ") })
        let words = layer.split(separator: " ")
        #expect(words.prefix(7) == ["blocks.2.up", "67", "×", "72", "int4", "group", "64"])
        #expect(words.contains("int4") && words.contains("bias"))
        #expect(lines.contains { $0.hasPrefix("embed_tokens.weight") } && !lines.contains { $0.hasPrefix("blocks.2.up.codes") })
        #expect(lines.contains { $0.hasPrefix("  origin = test") })
    }

    @Test("a listing of a file that lies about its layers shows what there is")
    func hostileListing() throws {
        var writer = SafetensorsWriter(metadata: [
            "format": "sparsekernels.svdquant", "version": "1", "a.tensors": "codes nothing", "a.outFeatures": "-3\u{1B}",
        ])
        try writer.add("a.codes", Tensor<UInt8>(zeros: [3]))
        let lines = ModelListing(try SafetensorsFile(bytes: writer.encoded(), named: "lies")).lines
        #expect(lines.count == 4 && !lines.joined().unicodeScalars.contains("\u{1B}"))
    }
}
