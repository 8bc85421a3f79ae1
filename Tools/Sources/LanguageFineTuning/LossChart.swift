public import SparseKernelsFineTuning
import Terminal

/// The picture of the losses of a run.
public enum LossChart {
    /// Points of the curve of the training, each the mean of the steps around it, because single steps are noisy.
    static let points = 60

    /// The chart of a run as SVG: the loss of the steps, and that of the windows that are held out.
    public static func svg(_ curve: FineTuningCurve, title: String, subtitle: String = "") -> String {
        LineChart(
            title: title, subtitle: subtitle, xAxis: .init("steps"), yAxis: .init("nats per token", includesZero: false),
            series: [
                .init("training", means(curve.steps.map(\.loss))),
                .init("held out", curve.validations.map { (Double($0.step), $0.loss) }),
            ]
        ).svg()
    }

    /// Means of equal parts of some values, at the middle of each part. Steps count from 1.
    static func means(_ values: [Double]) -> [(x: Double, y: Double)] {
        let parts = min(points, values.count)
        return (0..<parts).map { part in
            let range = part * values.count / parts..<(part + 1) * values.count / parts
            return (
                Double(range.lowerBound + range.upperBound + 1) / 2, values[range].reduce(0, +) / Double(range.count)
            )
        }
    }
}
