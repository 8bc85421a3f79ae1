public import SparseKernelsModels
public import Terminal

/// A row of the table of methods: one video, or the mean of several, beside the video of dense attention.
public struct VideoRow: Sendable {
    public let method: VideoMethod
    public let linear: String
    /// nil for the reference itself.
    public let quality: (psnr: Double, ssim: Double)?
    /// The part of all pairs that attention computed, over all steps and layers.
    public let density: Double
    /// The same over the calls after the warm-up; nil for dense attention.
    public let sparseDensity: Double?
    public let seconds: StageSeconds

    public init(
        method: VideoMethod, linear: String, sample: VideoSample, quality: VideoQuality?, warmUp: WarmedUpVideoAttention?
    ) {
        self.method = method
        self.linear = linear
        self.quality = quality.map { ($0.psnr, $0.ssim) }
        density = sample.density
        let (steps, layers) = (sample.densities.count, sample.densities[0].count)
        sparseDensity = warmUp.map { warmUp in
            sample.density { step, layer in
                !warmUp.isDense(at: VideoAttentionPlace(layer: layer, layers: layers, step: step, steps: steps))
            }
        }
        seconds = sample.seconds
    }

    private init(
        _ first: VideoRow, quality: (psnr: Double, ssim: Double)?, density: Double, sparseDensity: Double?,
        seconds: StageSeconds
    ) {
        method = first.method
        linear = first.linear
        self.quality = quality
        self.density = density
        self.sparseDensity = sparseDensity
        self.seconds = seconds
    }

    /// The mean of rows of one method and linear format. There must be one or more.
    public static func mean(_ rows: [VideoRow]) -> VideoRow {
        func mean(_ value: (VideoRow) -> Double) -> Double { rows.reduce(0) { $0 + value($1) } / Double(rows.count) }
        var seconds = StageSeconds()
        seconds.attention = mean(\.seconds.attention)
        seconds.linear = mean(\.seconds.linear)
        seconds.other = mean(\.seconds.other)
        let hasQuality = rows.allSatisfy { $0.quality != nil }
        return VideoRow(
            rows[0], quality: hasQuality ? (mean { $0.quality!.psnr }, mean { $0.quality!.ssim }) : nil,
            density: mean(\.density),
            sparseDensity: rows.allSatisfy { $0.sparseDensity != nil } ? mean { $0.sparseDensity! } : nil, seconds: seconds)
    }

    public static let table = TextTable([
        .init("Attention", width: 15, alignment: .left), .init("Linear", width: 6, alignment: .left),
        .init("PSNR", "dB", width: 5), .init("SSIM", width: 6), .init("Density", "%", width: 7),
        .init("Sparse", "%", width: 6), .init("Attention", "s", width: 9), .init("Linear", "s", width: 6),
        .init("Other", "s", width: 5), .init("Total", "s", width: 6),
    ])

    public var line: String {
        Self.table.line([
            method.title, linear, Format.number(quality?.psnr), quality.map { Format.number($0.ssim) } ?? "",
            Format.percent(density), Format.percent(sparseDensity), Format.number(seconds.attention),
            Format.number(seconds.linear), Format.number(seconds.other), Format.number(seconds.total),
        ])
    }

    /// What the columns mean, for the lines below a table.
    public static let legend = [
        "PSNR and SSIM: the mean over the frames, against dense attention with the same noise.",
        "Density: the part of the pairs of query and key that were computed, over all steps and layers. Sparse: the same without "
            + "the first steps and layers, which are dense.",
    ]
}
