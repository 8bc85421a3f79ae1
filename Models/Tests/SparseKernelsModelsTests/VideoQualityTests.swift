import Foundation
import SparseKernels
import SparseKernelsModels
import SparseKernelsReference
import Testing

@Suite("PSNR and SSIM")
struct VideoQualityTests {
    private func clip(_ seed: UInt64, _ shape: [Int] = [2, 3, 13, 16], scale: Float = 0.4) throws -> VideoClip {
        try VideoClip(pixels: .normal(shape, seed: seed, scale: scale))
    }

    @Test("both are those of their definitions, window by window")
    func oracle() throws {
        let (a, b) = (try clip(1), try clip(2, scale: 0.9))
        let quality = try VideoQuality(a, against: b)
        func value(_ clip: VideoClip, _ frame: Int, _ colour: Int, _ y: Int, _ x: Int) -> Double {
            Double(max(-1, min(1, clip.pixels[frame, colour, y, x])))
        }
        var (psnr, ssim) = (0.0, 0.0)
        for frame in 0..<2 {
            var squares = 0.0
            for colour in 0..<3 {
                for y in 0..<13 {
                    for x in 0..<16 { squares += pow(value(a, frame, colour, y, x) - value(b, frame, colour, y, x), 2) }
                }
                for y in 0..<3 {
                    for x in 0..<6 {
                        var (weights, meanA, meanB) = (0.0, 0.0, 0.0)
                        func each(_ body: (Double, Double, Double) -> Void) {
                            for v in 0..<11 {
                                for u in 0..<11 {
                                    let distance = Double((v - 5) * (v - 5) + (u - 5) * (u - 5))
                                    body(
                                        exp(-distance / 4.5), value(a, frame, colour, y + v, x + u),
                                        value(b, frame, colour, y + v, x + u))
                                }
                            }
                        }
                        each {
                            weights += $0; meanA += $0 * $1; meanB += $0 * $2
                        }
                        (meanA, meanB) = (meanA / weights, meanB / weights)
                        var (varianceA, varianceB, covariance) = (0.0, 0.0, 0.0)
                        each {
                            varianceA += $0 / weights * ($1 - meanA) * ($1 - meanA)
                            varianceB += $0 / weights * ($2 - meanB) * ($2 - meanB)
                            covariance += $0 / weights * ($1 - meanA) * ($2 - meanB)
                        }
                        ssim +=
                            (2 * meanA * meanB + 0.0004) * (2 * covariance + 0.0036)
                            / ((meanA * meanA + meanB * meanB + 0.0004) * (varianceA + varianceB + 0.0036)) / (2 * 3 * 18)
                    }
                }
            }
            psnr += 10 * log10(4 / (squares / (3 * 13 * 16))) / 2
        }
        #expect(abs(quality.psnr - psnr) < 1e-9 && abs(quality.ssim - ssim) < 1e-9)
    }

    @Test("a video is equal to itself, an even error has the PSNR of its size, and more noise is further away")
    func properties() throws {
        let clip = try clip(1)
        #expect(try VideoQuality(clip, against: clip) == VideoQuality(clip, against: clip))
        let same = try VideoQuality(clip, against: clip)
        #expect(same.psnr == VideoQuality.maximumPSNR && abs(same.ssim - 1) < 1e-12)
        let grey = try VideoClip(pixels: Tensor(zeros: [1, 3, 11, 11]))
        let lighter = try VideoClip(pixels: Tensor([1, 3, 11, 11]) { _ in 0.2 })
        // 10 log₁₀(4 / 0.04).
        #expect(abs(try VideoQuality(lighter, against: grey).psnr - 20) < 1e-5)
        let noise = try self.clip(9)
        let qualities = try [0.01, 0.1, 0.5].map { size in
            try VideoQuality(
                VideoClip(pixels: Tensor(clip.pixels.shape) { clip.pixels[flat: $0] + Float(size) * noise.pixels[flat: $0] }),
                against: clip)
        }
        #expect(qualities[0].psnr > qualities[1].psnr && qualities[1].psnr > qualities[2].psnr)
        #expect(qualities[0].ssim > qualities[1].ssim && qualities[1].ssim > qualities[2].ssim)
    }

    @Test("sizes that differ or are below the window are refused")
    func refusals() throws {
        let clip = try clip(1)
        #expect(throws: SparseKernelsError.self) { try VideoQuality(clip, against: self.clip(1, [1, 3, 13, 16])) }
        let small = try self.clip(1, [1, 3, 10, 20])
        #expect(throws: SparseKernelsError.self) { try VideoQuality(small, against: small) }
        #expect(throws: SparseKernelsError.self) { try VideoClip(pixels: Tensor(zeros: [2, 1, 16, 16])) }
        #expect(throws: SparseKernelsError.self) { try VideoClip(pixels: Tensor(zeros: [0, 3, 16, 16])) }
    }
}
