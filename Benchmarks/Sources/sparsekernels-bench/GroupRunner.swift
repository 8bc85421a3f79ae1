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
            contenders.append(Contender("\(index)", variant.body))
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
        let samples = sampler.interleave(contenders) { progress.tick() }

        return variants.enumerated().map { index, variant in
            let timing = samples.summary(of: "\(index)")
            let operations = variant.operations ?? group.operations
            let rate = operations.actual.map { $0 / timing.median / 1e9 }
            let roof = roofRates[index].isEmpty ? nil : Summary(roofRates[index]).median
            return BenchmarkRow(
                op: variant.op ?? group.op, caseName: group.name + (variant.label.map { " \($0)" } ?? ""),
                density: variant.density, isa: variant.isa, threads: variant.threads, timing: timing, actualGFLOPS: rate,
                effectiveGFLOPS: operations.effective.map { $0 / timing.median / 1e9 },
                roofFraction: roof.flatMap { roof in rate.map { $0 / roof } }, baseline: variant.baseline?.name,
                baselineSeconds: variant.baseline.map { samples.summary(of: "\($0.index)").median },
                speedup: variant.baseline.map { samples.speedup(of: "\(index)", over: "\($0.index)") },
                error: checks[index]?.error, errorBound: checks[index]?.bound, recall: variant.quality?.recall,
                oracleDensity: variant.quality?.oracleDensity, outputError: variant.quality?.outputError,
                verified: checks[index]?.passed)
        }
    }
}
