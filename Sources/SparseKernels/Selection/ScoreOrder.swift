/// Scores as integers with the same order, so that maxima and ranks are exact for all scores.
///
/// −∞ < … < −x < 0 < x < … < ∞ < NaN. The two zeros are equal, and so are all NaN. NaN comes first in a ranking: elements with
/// a NaN are kept, so that attention shows it.
enum ScoreOrder {
    /// The key of a score. Only −∞ has the key `lowest`.
    @inline(__always)
    static func key(_ score: Float) -> Int32 {
        // The sum turns −0 into +0. Bit patterns of negative numbers ascend with the magnitude.
        let bits = Int32(bitPattern: (score + 0).bitPattern)
        let ordered = bits ^ ((bits >> 31) & .max)
        return score == score ? ordered : .max
    }

    /// The keys of eight adjacent scores.
    typealias Keys = SIMD8<Int32>

    /// The keys of eight adjacent scores. See `key`.
    @inline(__always)
    static func keys(_ scores: UnsafePointer<Float>) -> Keys {
        let scores = UnsafeRawPointer(scores).loadUnaligned(as: SIMD8<Float>.self)
        let bits = unsafeBitCast(scores + 0, to: Keys.self)
        let ordered = bits ^ ((bits &>> 31) & Keys(repeating: .max))
        return ordered.replacing(with: .max, where: scores .!= scores)
    }

    /// The score of a key. All NaN give the canonical quiet NaN.
    @inline(__always)
    static func score(_ key: Int32) -> Float {
        key == .max ? .nan : Float(bitPattern: UInt32(bitPattern: key ^ ((key >> 31) & .max)))
    }

    /// The key of −∞, which is the lowest key.
    static let lowest = key(-.infinity)
}
