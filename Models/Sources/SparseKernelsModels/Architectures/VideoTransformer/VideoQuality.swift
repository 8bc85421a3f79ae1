import Foundation
public import SparseKernels

/// How near a video is to another, frame by frame: the mean over the frames of the two usual measures, for values from −1 to 1.
///
/// Values are clamped to that range first, as on a screen.
///
/// - Source of SSIM: Wang, Bovik, Sheikh and Simoncelli, "Image Quality Assessment: From Error Visibility to Structural
///   Similarity" (2004): a Gaussian window of 11 × 11 with σ 1.5 that lies within the frame, C₁ = (0.01 L)², C₂ = (0.03 L)², each
///   colour on its own.
public struct VideoQuality: Hashable, Sendable {
    /// 10 log₁₀(L² / mean squared error) in dB, at most `maximumPSNR`.
    public let psnr: Double
    /// From −1 to 1, for equal videos.
    public let ssim: Double

    /// The PSNR of equal frames, whose mean squared error is 0.
    public static let maximumPSNR = 100.0
    /// Rows and columns of the window of SSIM.
    public static let windowSize = 11
    private static let range = 2.0

    /// - Throws: `.invalidShape` for clips of two sizes, or smaller than the window; `.invalidArgument` for NaN.
    public init(_ clip: VideoClip, against reference: VideoClip) throws(SparseKernelsError) {
        guard clip.pixels.shape == reference.pixels.shape else {
            throw SparseKernelsError(
                .invalidShape, "clip", expected: "as the reference, \(reference.pixels.shape)", actual: "\(clip.pixels.shape)")
        }
        guard min(clip.height, clip.width) >= Self.windowSize else {
            throw SparseKernelsError(
                .invalidShape, "clip", expected: "frames of \(Self.windowSize) × \(Self.windowSize) pixels or more",
                actual: "\(clip.height) × \(clip.width)")
        }
        let plane = clip.height * clip.width
        let (values, references) = (clip.pixels.span, reference.pixels.span)
        func clamped(_ span: Span<Float>, _ start: Int) -> [Double] {
            (0..<plane).map { Double(max(-1, min(1, span[start + $0]))) }
        }
        var (psnr, ssim) = (0.0, 0.0)
        for frame in 0..<clip.frames {
            var squares = 0.0
            for colour in 0..<3 {
                let start = (frame * 3 + colour) * plane
                let (a, b) = (clamped(values, start), clamped(references, start))
                for i in 0..<plane { squares += (a[i] - b[i]) * (a[i] - b[i]) }
                ssim += Self.structuralSimilarity(a, b, height: clip.height, width: clip.width)
            }
            let error = squares / Double(3 * plane)
            psnr += error == 0 ? Self.maximumPSNR : min(Self.maximumPSNR, 10 * log10(Self.range * Self.range / error))
        }
        self.psnr = psnr / Double(clip.frames)
        self.ssim = ssim / Double(3 * clip.frames)
        guard self.psnr.isFinite, self.ssim.isFinite else {
            throw SparseKernelsError(.invalidArgument, "clip", expected: "numbers", actual: "NaN")
        }
    }

    private static let window: [Double] = {
        let weights = (0..<windowSize).map { exp(-pow(Double($0 - windowSize / 2), 2) / (2 * 1.5 * 1.5)) }
        return weights.map { $0 / weights.reduce(0, +) }
    }()

    /// The mean of SSIM over all places of the window.
    private static func structuralSimilarity(_ a: [Double], _ b: [Double], height: Int, width: Int) -> Double {
        func smoothed(_ value: (Int) -> Double) -> [Double] {
            smooth((0..<height * width).map(value), height: height, width: width)
        }
        let (meanA, meanB) = (smoothed { a[$0] }, smoothed { b[$0] })
        let (squareA, squareB) = (smoothed { a[$0] * a[$0] }, smoothed { b[$0] * b[$0] })
        let products = smoothed { a[$0] * b[$0] }
        let (c1, c2) = (pow(0.01 * range, 2), pow(0.03 * range, 2))
        var sum = 0.0
        for i in meanA.indices {
            let product = meanA[i] * meanB[i]
            let squares = meanA[i] * meanA[i] + meanB[i] * meanB[i]
            let covariance = products[i] - product
            let variances = squareA[i] + squareB[i] - squares
            sum += (2 * product + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))
        }
        return sum / Double(meanA.count)
    }

    /// The window applied along rows and then along columns, where it lies within the plane.
    private static func smooth(_ plane: [Double], height: Int, width: Int) -> [Double] {
        let (rows, columns) = (height - windowSize + 1, width - windowSize + 1)
        var narrow = [Double](repeating: 0, count: height * columns)
        for y in 0..<height {
            for x in 0..<columns {
                var sum = 0.0
                for i in 0..<windowSize { sum += window[i] * plane[y * width + x + i] }
                narrow[y * columns + x] = sum
            }
        }
        var result = [Double](repeating: 0, count: rows * columns)
        for y in 0..<rows {
            for x in 0..<columns {
                var sum = 0.0
                for i in 0..<windowSize { sum += window[i] * narrow[(y + i) * columns + x] }
                result[y * columns + x] = sum
            }
        }
        return result
    }
}
