import Foundation
import QServe
import Testing

/// The snippets of Docs/Papers/QServe.md, with checks of their comments.
@Suite("Snippets: QServe")
struct QServeSnippets {
    static func pattern(_ shape: [Int], _ step: Int) throws -> Tensor<Float> {
        try Tensor(shape) { Float($0 * step % 31) / 16 - 1 }
    }

    @Test("quantise, run, write and read")
    func layer() throws {
        let (weight, bias) = (try Self.pattern([64, 256], 7), try Self.pattern([64], 5))
        let x = try Self.pattern([3, 256], 11)
        let path = NSTemporaryDirectory() + "qserve-\(UUID().uuidString).safetensors"
        defer { try? FileManager.default.removeItem(atPath: path) }

        let quantized = try ProgressiveQuantizer()(weight)
        let layer = try QServeLinear(quantized: quantized, bias: bias)
        let y = try layer(x)  // [tokens, outFeatures]

        // As a QServe checkpoint, and back.
        var writer = SafetensorsWriter()
        try QServeTensors(packing: quantized, order: .omniserve, bias: bias).write(to: &writer, prefix: "down_proj")
        try writer.write(to: path)
        let again = try QServeLinear(file: SafetensorsFile(path: path), prefix: "down_proj", order: .omniserve)

        #expect(y.shape == [3, 64] && again.outFeatures == 64 && again.inFeatures == 256)
        #expect(try again(x) == y)
    }

    @Test("the report of bytes")
    func bytes() throws {
        let quantized = try ProgressiveQuantizer()(Self.pattern([64, 256], 7))

        let bytes = try IntermediateRange(quantized)
        print(bytes.lowest, bytes.highest, bytes.fits)

        #expect(bytes.fits && bytes.lowest >= -120 && bytes.highest <= 127)
    }
}
