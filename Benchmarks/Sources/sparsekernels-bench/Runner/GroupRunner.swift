import BenchmarkReport
import Foundation
import Terminal

/// Verifies and times groups, and turns the samples into rows.
struct GroupRunner {
    var sampler: Sampler
    var progress: ProgressLine

    func run(_ group: CaseGroup) throws -> [BenchmarkRow] {
        progress.begin(group.name)
        defer {
            progress.finishCase()
            progress.clear()
        }
        let variants = try group.variants { progress.begin("\(group.name): \($0)") }
        progress.begin(group.name)
        let checks = try variants.map { variant in
            defer { progress.tick() }
            return try variant.verify()
        }
        var roofRates = [[Double]](repeating: [], count: variants.count)
        var contenders: [Contender] = []
        for (index, variant) in variants.enumerated() {
            if let preparation = variant.preparation { contenders.append(Contender("before \(index)", preparation)) }
            if let body = variant.body {
                contenders.append(Contender("\(index)", repeats: variant.preparation == nil, body))
            }
            if variant.restsAfterwards {
                contenders.append(Contender("rest \(index)") { Thread.sleep(forTimeInterval: 0.05) })
            }
            if let roof = variant.roof {
                contenders.append(Contender("roof \(index)") { roofRates[index].append(roof()) })
            }
        }
        var sampler = sampler
        if let rounds = group.rounds {
            // Verification has already called everything once.
            sampler.warmUpRounds = 0
            sampler.minimumRounds = rounds
            sampler.maximumRounds = rounds
        }
        let samples = mixed(sampler.interleave(contenders) { progress.tick() }, variants)

        return variants.enumerated().filter { !$0.element.isHidden }.map { index, variant in
            let tokens = Double(variant.tokensPerCall)
            var row = BenchmarkRow(
                op: variant.op ?? group.op, caseName: group.name + (variant.label.map { " \($0)" } ?? ""), isa: variant.isa,
                threads: variant.threads, baseline: variant.baseline?.name, verified: checks[index]?.passed,
                metrics: variant.metrics)
            if let time = samples.summary(of: "\(index)") {
                row.setTime(Summary(median: time.median / tokens, min: time.min / tokens, max: time.max / tokens))
                for (metric, amount) in variant.amounts ?? group.amounts { row[metric] = amount / time.median / 1e9 }
            }
            for (metric, value) in variant.sampled { row[metric] = value(samples) }
            if !roofRates[index].isEmpty, let rate = row[.actualGFLOPS] {
                row[.roofFraction] = rate / Summary(roofRates[index]).median
            }
            if let baseline = variant.baseline {
                let comparison = Comparison(variant, index, with: variants[baseline.index], baseline.index, samples)
                row[.baselineSeconds] = comparison.seconds.map { $0 / tokens }
                row[.speedup] = comparison.speedup
            }
            if let check = checks[index] { (row[.error], row[.errorBound]) = (check.error, check.bound) }
            return row
        }
    }

    /// Adds the samples of variants that are sums of others, round by round.
    private func mixed(_ samples: InterleavedSamples, _ variants: [Variant]) -> InterleavedSamples {
        var (names, all) = (samples.names, samples.samples)
        for (index, variant) in variants.enumerated() where !variant.mixture.isEmpty {
            let parts = variant.mixture.map { part in
                samples.samples[names.firstIndex(of: "\(part.index)")!].map { $0 * part.weight }
            }
            names.append("\(index)")
            all.append(parts[0].indices.map { round in parts.reduce(0) { $0 + $1[round] } })
        }
        return InterleavedSamples(names: names, samples: all)
    }

    /// A comparison of a row with its baseline: by the times of the rounds, or of making the layers if a row has no other.
    private struct Comparison {
        var seconds: Double?
        var speedup: Double?

        init(_ variant: Variant, _ index: Int, with baseline: Variant, _ baselineIndex: Int, _ samples: InterleavedSamples) {
            guard variant.body == nil && variant.mixture.isEmpty else {
                seconds = samples.summary(of: "\(baselineIndex)")?.median
                speedup = samples.speedup(of: "\(index)", over: "\(baselineIndex)")
                return
            }
            seconds = baseline.metrics[.quantizationSeconds]
            speedup = seconds.flatMap { seconds in variant.metrics[.quantizationSeconds].map { seconds / $0 } }
        }
    }
}
