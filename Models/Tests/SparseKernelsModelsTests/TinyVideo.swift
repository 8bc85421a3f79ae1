import Foundation
import SVDQuant
import SparseKernels
import SparseKernelsModels
import SparseKernelsReference

/// A folder with a video model of two layers and random weights: 2 frames of 2 × 2 patches, 4 text tokens, 2 heads of 12
/// channels. It is removed when the test ends.
final class TinyVideo {
    let folder = NSTemporaryDirectory() + "sparsekernels-video-\(UUID().uuidString)"
    static let configuration = """
        {"frames": 2, "image_size": 4, "patch_size": 2, "grid": 2, "video_tokens": 8, "text_tokens": 4, "hidden_size": 24,
         "num_layers": 2, "num_heads": 2, "head_dim": 12, "mlp_ratio": 3, "text_vocab": 9, "rope_axes_dim": [4, 6, 2],
         "rope_theta": 100.0, "qk_norm_eps": 1e-5, "patch_dim": 12, "time_scale": 100.0}
        """
    private(set) var weights: [String: Tensor<Float>] = [:]

    /// 4 frames of 8 × 8 patches, and the text of `SpritePrompt`.
    static let sprites = """
        {"frames": 4, "image_size": 16, "patch_size": 2, "text_tokens": 32, "hidden_size": 24, "num_layers": 2, "num_heads": 2,
         "head_dim": 12, "mlp_ratio": 3, "text_vocab": 64, "rope_axes_dim": [4, 6, 2]}
        """

    /// - Parameter text: the text tokens of the configuration, and the ids that they can have.
    init(
        configuration: String = TinyVideo.configuration, text: (tokens: Int, ids: Int) = (4, 9),
        leavingOut missing: String? = nil, changing changed: String? = nil
    ) throws {
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        try Data(configuration.utf8).write(to: URL(fileURLWithPath: folder + "/config.json"))
        let d = 24
        var shapes = [
            "patch.weight": [d, 12], "patch.bias": [d], "t1.weight": [d, 8], "t1.bias": [d], "t2.weight": [d, d],
            "t2.bias": [d],
            "t6.weight": [6 * d, d], "t6.bias": [6 * d], "text.weight": [text.ids, d], "tpos": [text.tokens, d],
            "fmod": [2, d],
            "out.weight": [12, d], "out.bias": [12],
        ]
        for layer in 0..<2 {
            let linear = ["qkv": [3 * d, d], "o": [d, d], "up": [72, d], "down": [d, 72]]
            for (name, shape) in linear {
                shapes["blocks.\(layer).\(name).weight"] = shape
                shapes["blocks.\(layer).\(name).bias"] = [shape[0]]
            }
            for (name, shape) in ["mod": [6, d], "qn": [12], "kn": [12]] { shapes["blocks.\(layer).\(name)"] = shape }
        }
        var writer = SafetensorsWriter()
        for (index, name) in shapes.keys.sorted().enumerated() where name != missing {
            let shape = name == changed ? [3] : shapes[name]!
            let weight = try Tensor<Float>.normal(shape, seed: UInt64(index), scale: 0.3)
            weights[name] = weight
            try writer.add(name, weight)
        }
        try writer.write(to: folder + "/model.safetensors")
    }

    func model() throws -> VideoTransformer { try VideoTransformer(folder: folder) }

    deinit { try? FileManager.default.removeItem(atPath: folder) }

    /// Puts a file in the place of the weights, with the linear layers of the blocks in 4 bits.
    func quantize() throws {
        var writer = SafetensorsWriter()
        for (name, weight) in weights where !(name.hasPrefix("blocks.") && (name.hasSuffix("weight") || name.hasSuffix("bias")))
        {
            try writer.add(name, weight)
        }
        for layer in 0..<2 {
            for part in ["qkv", "o", "up", "down"] {
                let name = "blocks.\(layer).\(part)"
                let weight = weights[name + ".weight"]!
                try SVDQuantLinear(
                    weight: weight, bias: weights[name + ".bias"]!.converted(to: Float16.self).converted(to: Float.self),
                    calibration: .normal([32, weight.shape[1]], seed: 3), rank: 8
                ).write(to: &writer, prefix: name)
            }
        }
        try writer.write(to: folder + "/model.safetensors")
    }

    /// The velocity in `Double`, from the description of the model, token by token.
    func velocity(of patches: [[Double]], prompt: [Int], time: Double) -> [[Double]] {
        let (d, heads, headDim, text) = (24, 2, 12, 4)
        func w(_ name: String) -> [[Double]] {
            let tensor = weights[name]!
            let columns = tensor.shape.last!
            let values = tensor.elements.map(Double.init)
            return (0..<values.count / columns).map { Array(values[$0 * columns..<($0 + 1) * columns]) }
        }
        func linear(_ name: String, _ x: [Double]) -> [Double] {
            zip(w(name + ".weight"), w(name + ".bias")[0]).map { row, bias in zip(row, x).reduce(bias) { $0 + $1.0 * $1.1 } }
        }
        func silu(_ x: [Double]) -> [Double] { x.map { $0 / (1 + exp(-$0)) } }
        func norm(_ x: [Double], _ shift: [Double], _ scale: [Double]) -> [Double] {
            let mean = x.reduce(0, +) / Double(d)
            let variance = x.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Double(d)
            return (0..<d).map { (x[$0] - mean) / (variance + 1e-5).squareRoot() * (1 + scale[$0]) + shift[$0] }
        }
        let angles = (0..<4).map { 100 * time * pow(10000, -Double($0) / 4) }
        let te = linear("t2", silu(linear("t1", angles.map(cos) + angles.map(sin))))
        let e = linear("t6", silu(te))
        let (textWeight, positions) = (w("text.weight"), w("tpos"))
        var x = (0..<text).map { t in zip(textWeight[prompt[t]], positions[t]).map { $0 + $1 } }
        x += patches.map { linear("patch", $0) }
        func rotated(_ row: [Double], _ weight: [Double], token: Int) -> [Double] {
            let factor = 1 / (row.reduce(0) { $0 + $1 * $1 } / Double(headDim) + 1e-5).squareRoot()
            var y = zip(row, weight).map { $0 * factor * $1 }
            guard token >= text else { return y }
            let place = [(token - text) / 4, (token - text) / 2 % 2, (token - text) % 2]
            var pair = 0
            for (axis, channels) in [4, 6, 2].enumerated() {
                for i in 0..<channels / 2 {
                    let angle = Double(place[axis]) * pow(100, -2 * Double(i) / Double(channels))
                    let (a, b) = (y[2 * pair], y[2 * pair + 1])
                    y[2 * pair] = a * cos(angle) - b * sin(angle)
                    y[2 * pair + 1] = a * sin(angle) + b * cos(angle)
                    pair += 1
                }
            }
            return y
        }
        for layer in 0..<2 {
            let block = "blocks.\(layer)."
            let mod = w(block + "mod")
            func m(_ i: Int) -> [Double] { (0..<d).map { e[i * d + $0] + mod[i][$0] } }
            let qkv = x.map { linear(block + "qkv", norm($0, m(0), m(1))) }
            var attended = [[Double]](repeating: [], count: x.count)
            for head in 0..<heads {
                func part(_ index: Int, _ token: Int) -> [Double] {
                    Array(qkv[token][index * d + head * headDim..<index * d + (head + 1) * headDim])
                }
                let q = x.indices.map { rotated(part(0, $0), w(block + "qn")[0], token: $0) }
                let k = x.indices.map { rotated(part(1, $0), w(block + "kn")[0], token: $0) }
                for i in x.indices {
                    let scores = k.map { exp(zip(q[i], $0).reduce(0) { $0 + $1.0 * $1.1 } / Double(headDim).squareRoot()) }
                    let sum = scores.reduce(0, +)
                    attended[i] += (0..<headDim).map { c in
                        x.indices.reduce(0) { $0 + scores[$1] / sum * part(2, $1)[c] }
                    }
                }
            }
            for i in x.indices {
                let o = linear(block + "o", attended[i])
                for c in 0..<d { x[i][c] += m(2)[c] * o[c] }
                let inner = linear(block + "up", norm(x[i], m(3), m(4))).map { u in
                    0.5 * u * (1 + tanh((2 / Double.pi).squareRoot() * (u + 0.044715 * u * u * u)))
                }
                let down = linear(block + "down", inner)
                for c in 0..<d { x[i][c] += m(5)[c] * down[c] }
            }
        }
        let fmod = w("fmod")
        func f(_ i: Int) -> [Double] { zip(fmod[i], te).map { $0 + $1 } }
        return x.dropFirst(text).map { linear("out", norm($0, f(0), f(1))) }
    }
}

/// ‖a − b‖ / ‖b‖.
func relativeDistance(_ a: [Float], _ b: [Float]) -> Double {
    let distance = zip(a, b).reduce(0.0) { $0 + pow(Double($1.0) - Double($1.1), 2) }
    return (distance / b.reduce(0.0) { $0 + pow(Double($1), 2) }).squareRoot()
}
