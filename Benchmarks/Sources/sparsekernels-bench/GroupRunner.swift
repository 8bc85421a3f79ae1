import BenchmarkReport
import Foundation

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
            let tokens = Double(variant.decode?.tokensPerCall ?? 1)
            let timing = samples.summary(of: "\(index)")
            let operations = variant.operations ?? group.operations
            func rate(_ amount: Double?) -> Double? { amount.flatMap { amount in timing.map { amount / $0.median / 1e9 } } }
            let actual = rate(operations.actual)
            let roof = roofRates[index].isEmpty ? nil : Summary(roofRates[index]).median
            let baseline = variant.baseline.map { Comparison(variant, index, with: variants[$0.index], $0.index, samples) }
            return BenchmarkRow(
                op: variant.op ?? group.op, caseName: group.name + (variant.label.map { " \($0)" } ?? ""),
                density: variant.density, isa: variant.isa, threads: variant.threads,
                timing: timing.map { Summary(median: $0.median / tokens, min: $0.min / tokens, max: $0.max / tokens) },
                actualGFLOPS: actual, effectiveGFLOPS: rate(operations.effective),
                weightGigabytesPerSecond: rate(variant.weightBytes.map(Double.init)),
                roofFraction: roof.flatMap { roof in actual.map { $0 / roof } }, baseline: variant.baseline?.name,
                baselineSeconds: baseline?.seconds.map { $0 / tokens }, speedup: baseline?.speedup,
                error: checks[index]?.error, errorBound: checks[index]?.bound, recall: variant.quality?.recall,
                oracleDensity: variant.quality?.oracleDensity, outputError: variant.quality?.outputError,
                quantizationSeconds: variant.quantizationSeconds, bytesRead: variant.decode?.bytesRead.map { $0 / tokens },
                scoringShare: variant.decode?.scoring.map { $0.part / samples.speedup(of: "\($0.index)", over: "\(index)") },
                sameFormatSpeedup: variant.decode?.sameFormat.map { samples.speedup(of: "\(index)", over: "\($0)") },
                bytesPerToken: variant.decode?.bytesPerToken, keptTokens: variant.decode?.keptTokens,
                budgetTokens: variant.decode?.budgetTokens, verified: checks[index]?.passed)
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
            seconds = baseline.quantizationSeconds
            speedup = seconds.flatMap { seconds in variant.quantizationSeconds.map { seconds / $0 } }
        }
    }
}
