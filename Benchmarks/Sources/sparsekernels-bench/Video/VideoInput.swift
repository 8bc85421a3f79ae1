import Foundation
import SparseKernels
import SparseKernelsReference

/// Queries, keys and values of a made-up video at the sizes of real models, whose captures are too large to ship.
///
/// Objects of different sizes move over a background of patches. A token's query and key are the sum of its object's vector,
/// of waves of its place in space and time, and of noise, so that tokens attend to their object in all frames and to their
/// neighbours. It is no model's attention; captures of a trained model stand beside it in the table.
struct VideoInput {
    let query: Tensor<Float>
    let key: Tensor<Float>
    let value: Tensor<Float>

    /// - Parameters:
    ///   - geometry: without text.
    ///   - seed: of objects, vectors and noise.
    init(_ geometry: VideoGeometry, headDim: Int, seed: UInt64) throws {
        var generator = SplitMix64(seed: seed)
        let objects = Self.objects(geometry, &generator)
        let count = Int(objects.max() ?? 0) + 1
        func vectors() -> [Float] { (0..<count * headDim).map { _ in generator.normal() } }
        let own = vectors()
        let waves = Self.waves(geometry, headDim)
        func rows(_ seed: UInt64) throws -> Tensor<Float> {
            let noise = try Tensor<Float>.normal([1, geometry.tokens, headDim], seed: seed)
            return try Tensor([1, geometry.tokens, headDim]) { index in
                let (token, channel) = index.quotientAndRemainder(dividingBy: headDim)
                return Self.objectWeight * own[Int(objects[token]) * headDim + channel] + Self.waveWeight
                    * waves(token, channel)
                    + Self.noiseWeight * noise[flat: index]
            }
        }
        query = try rows(seed + 1)
        key = try rows(seed + 2)
        value = try .normal([1, geometry.tokens, headDim], seed: seed + 3)
    }

    // With these weights the score of two tokens of one object is about 0.7²·√128 ≈ 5.5 above that of others, and that of
    // neighbours 0.45²·√128 ≈ 2.3 above that of distant tokens: masses of real heads with many relevant tokens.
    private static let objectWeight: Float = 0.7
    private static let waveWeight: Float = 0.45
    private static let noiseWeight: Float = 0.5

    /// The object of every token: 24 moving discs in front of 8 × 6 patches of background.
    private static func objects(_ geometry: VideoGeometry, _ generator: inout SplitMix64) -> [Int32] {
        struct Disc {
            var x, y, radius, dx, dy: Float
        }
        // A geometry without rows inside frames has them as near to 16:9 as can be.
        let rows = geometry.height > 1 ? geometry.height : max(1, Int((Double(geometry.width) * 9 / 16).squareRoot()))
        let columns = (geometry.tokensPerFrame + rows - 1) / rows
        let discs = (0..<24).map { _ in
            Disc(
                x: generator.uniform(), y: generator.uniform(), radius: 0.05 + 0.1 * generator.uniform(),
                dx: 0.4 * (generator.uniform() - 0.5), dy: 0.4 * (generator.uniform() - 0.5))
        }
        return (0..<geometry.tokens).map { token in
            let (frame, place) = token.quotientAndRemainder(dividingBy: geometry.tokensPerFrame)
            let time = Float(frame) / Float(geometry.frames)
            let (x, y) = (Float(place % columns) / Float(columns), Float(place / columns) / Float(rows))
            for (index, disc) in discs.enumerated() {
                let (a, b) = (x - disc.x - disc.dx * time, y - disc.y - disc.dy * time)
                if a * a + b * b < disc.radius * disc.radius { return Int32(48 + index) }
            }
            return Int32(min(5, y * 6)) * 8 + Int32(min(7, x * 8))
        }
    }

    /// Pairs of channels as cosine and sine of the place on one of the three axes, at several wavelengths.
    private static func waves(_ geometry: VideoGeometry, _ headDim: Int) -> (Int, Int) -> Float {
        let pairs = headDim / 2
        let frequencies = (0..<pairs).map { pow(50, -Float($0 / 3) / Float(max(1, pairs / 3))) }
        let rows = geometry.height > 1 ? geometry.height : max(1, Int((Double(geometry.width) * 9 / 16).squareRoot()))
        let columns = (geometry.tokensPerFrame + rows - 1) / rows
        return { token, channel in
            let (frame, place) = token.quotientAndRemainder(dividingBy: geometry.tokensPerFrame)
            let pair = min(channel / 2, pairs - 1)
            let position = Float([frame, place / columns, place % columns][pair % 3])
            let angle = position * frequencies[pair]
            return (channel % 2 == 0 ? cos(angle) : sin(angle)) * 1.4142135
        }
    }
}
