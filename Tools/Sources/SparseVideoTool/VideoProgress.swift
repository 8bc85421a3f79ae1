import SparseKernels
import SparseKernelsModels
import Terminal
import VideoGeneration

/// Makes videos with a line of progress that shows steps, density and the seconds of each stage.
struct VideoRunner {
    let sampler: VideoSampler
    let pool: WorkerPool

    func run(
        _ model: VideoTransformer, prompt: SpritePrompt, seed: UInt64, method: VideoMethod, options: VideoMethodOptions,
        title: String
    ) throws -> VideoSample {
        let attention = try options.attention(method, for: model.configuration)
        let progress = ProgressLine(total: sampler.steps, work: Double(sampler.steps * model.layers))
        let status = Status()
        progress.begin(title)
        let sample = try sampler(
            model, prompt: prompt.tokens, seed: seed, attention: attention, on: pool
        ) { event throws(SparseKernelsError) in status.note(event, title: title, on: progress, layers: model.layers) }
        progress.clear()
        return sample
    }

    /// What is shown of a run so far.
    private final class Status {
        private var seconds = StageSeconds()
        private var densities: [Double] = []

        func note(_ event: VideoSampler.Event, title: String, on progress: ProgressLine, layers: Int) {
            switch event {
            case .layer(_, _, let density):
                densities.append(density)
                progress.advance(work: 1)
            case .step(_, _, let spent):
                seconds += spent
                progress.finishCase(work: 0)
                let density = densities.reduce(0, +) / Double(densities.count)
                progress.begin(
                    "\(title), \(Format.percent(density)) %, attention \(Format.number(seconds.attention)) s, linear "
                        + "\(Format.number(seconds.linear)) s, other \(Format.number(seconds.other)) s")
            }
        }
    }
}
