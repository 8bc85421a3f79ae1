import Foundation
import SparseKernels

/// The angles of the rotary embedding on interleaved pairs, split among frame, row and column. Text is not rotated.
struct VideoRotation: Sendable {
    /// Pairs of a head.
    let pairs: Int
    /// `[tokens, pairs]`.
    let cosines: [Float]
    let sines: [Float]

    init(_ configuration: VideoTransformerConfiguration) {
        let (axes, grid) = (configuration.rotaryAxes, configuration.grid)
        pairs = configuration.headDim / 2
        var angles = [Double](repeating: 0, count: configuration.textTokens * pairs)
        angles.reserveCapacity(configuration.tokens * pairs)
        let frequencies = axes.map { channels in
            (0..<channels / 2).map { pow(configuration.ropeTheta, -2 * Double($0) / Double(channels)) }
        }
        for token in 0..<configuration.videoTokens {
            for (axis, position) in [token / (grid * grid), token / grid % grid, token % grid].enumerated() {
                for frequency in frequencies[axis] { angles.append(Double(position) * frequency) }
            }
        }
        cosines = angles.map { Float(cos($0)) }
        sines = angles.map { Float(sin($0)) }
    }
}
