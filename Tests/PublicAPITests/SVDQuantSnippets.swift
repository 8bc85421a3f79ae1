import Foundation
import SVDQuant
import Testing

/// The snippets of Docs/Papers/SVDQuant.md, with checks of their comments.
@Suite("Snippets: SVDQuant")
struct SVDQuantSnippets {
    static func pattern(_ shape: [Int], _ step: Int) throws -> Tensor<Float> {
        try Tensor(shape) { Float($0 * step % 31) / 16 - 1 }
    }

    @Test("quantise, run, save, load, adapt, import")
    func layers() throws {
        let weight = try Self.pattern([128, 128], 7)
        let bias = try Self.pattern([128], 3)
        let (tokens, x) = (try Self.pattern([64, 128], 11), try Self.pattern([8, 128], 13))
        let exact = try Tensor<Float>([8, 128]) { index in
            (0..<128).reduce(bias[flat: index % 128]) {
                $0 + x[flat: index / 128 * 128 + $1] * weight[flat: index % 128 * 128 + $1]
            }
        }
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent("svdquant-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        let path = folder.appendingPathComponent("layer.safetensors").path
        let adapterPath = folder.appendingPathComponent("adapter.safetensors").path
        let checkpointPath = folder.appendingPathComponent("checkpoint.safetensors").path

        // weight [outFeatures, inFeatures], tokens [tokens, inFeatures]: inputs that the layer gets to see.
        let layer = try SVDQuantLinear(weight: weight, bias: bias, calibration: tokens, rank: 8)
        let y = try layer(x)
        var (error, norm) = (Float(0), Float(0))
        for i in 0..<y.count {
            error += (y[flat: i] - exact[flat: i]) * (y[flat: i] - exact[flat: i])
            norm += exact[flat: i] * exact[flat: i]
        }
        print((error / norm).squareRoot() < 0.1, layer.byteCount < weight.count)  // true true: 4 bits, and the branch

        try layer.write(to: path)
        let loaded = try SVDQuantLinear(path: path)  // the same bits, on any machine

        #expect((error / norm).squareRoot() < 0.1 && layer.byteCount < weight.count)
        #expect(try loaded(x) == y)

        var factors = SafetensorsWriter()
        try factors.add("blocks.0.up.lora_A.weight", Self.pattern([4, 128], 5))
        try factors.add("blocks.0.up.lora_B.weight", Self.pattern([128, 4], 3))
        try factors.write(to: adapterPath)

        let adapter = try LoRAAdapter(file: SafetensorsFile(path: adapterPath), layer: "blocks.0.up")
        let styled = try loaded.adding(adapter, strength: 0.8)
        print(loaded.rank, styled.rank)  // 8 12

        #expect(loaded.rank == 8 && styled.rank == 12)

        let stated = try LoRAConfiguration(
            json: #"{"lora_alpha": 8, "use_rslora": true, "alpha_pattern": {"blocks\\.0\\..*": 16}}"#)
        let scaled = try LoRAAdapter(file: SafetensorsFile(path: adapterPath), layer: "blocks.0.up", configuration: stated)
        print(scaled.scale)  // 8.0: 16 / √4

        #expect(scaled.scale == 8)

        var packed = SafetensorsWriter()
        try layer.writeNunchaku(to: &packed, prefix: "transformer_blocks.0.mlp_fc1", elementType: .float16)
        try packed.write(to: checkpointPath)

        let checkpoint = try SafetensorsFile(path: checkpointPath)
        let released = try SVDQuantLinear(nunchaku: checkpoint, prefix: "transformer_blocks.0.mlp_fc1", epilogue: .gelu)
        let finer = try released.with(activation: .int8PerGroup)  // the same weights, activations of 8 bits
        print(released.activation, finer.activation)  // int4 int8PerGroup

        #expect(released.activation == .int4 && finer.activation == .int8PerGroup)

        var writer = SafetensorsWriter()
        try released.write(to: &writer, prefix: "blocks.0.up")
        try styled.write(to: &writer, prefix: "blocks.1.up")
        let file = try SafetensorsFile(bytes: writer.encoded())
        let model = try SVDQuantLinear.layers(in: file).map { try SVDQuantLinear(file: file, prefix: $0).linear }
        print(model.count)  // 2

        #expect(model.count == 2)
    }
}
