// The experts of tokens: scores from router logits, the largest keys in descending order, and the weights of their outputs.
//
// Without a bias the keys are the logits, whose order is that of the scores. Scores that round to the same number, such as the
// sigmoids of large logits, are then told apart. The choice is a scan for each of the chosen experts: some hundred logits are
// a few cache lines, and the layer behind takes a thousand times as long.

public import KernelInterface

extension Kernels {
    /// See `RouteTokensArguments`.
    public static func routeTokens(_ arguments: UnsafePointer<RouteTokensArguments>) {
        let args = arguments.pointee
        let padded = RouteTokensArguments.paddedExperts(args.experts)
        let logits = args.scratch
        let (scores, keys, strengths) = (logits + padded, logits + 2 * padded, logits + 3 * padded)
        for token in 0..<args.tokens {
            Kernels.stageRows(args.logits, first: token, count: 1, channels: args.experts, into: logits)
            for expert in args.experts..<padded { logits[expert] = logits[0] }
            if args.isSigmoid {
                scoreBySigmoid(logits, padded: padded, into: scores)
            } else {
                scoreBySoftmax(logits, experts: args.experts, padded: padded, into: scores)
            }
            for expert in 0..<args.experts {
                if let bias = args.bias {
                    keys[expert] = scores[expert] + bias[expert]
                } else {
                    keys[expert] = logits[expert]
                }
            }
            if args.keptGroups < args.groups { closeGroups(args, scores: scores, keys: keys, strengths: strengths) }
            chooseExperts(
                keys, scores, args, ids: args.ids + token * args.chosen, weights: args.weights + token * args.chosen)
        }
    }
}

/// 1 / (1 + e⁻ˣ).
@inline(never)
private func scoreBySigmoid(_ logits: UnsafePointer<Float>, padded: Int, into scores: UnsafeMutablePointer<Float>) {
    var expert = 0
    while expert < padded {
        store(splat(1) / (splat(1) + exp(minimum(splat(0) - load(logits + expert), splat(88)))), scores + expert)
        expert += laneCount
    }
}

/// eˣ⁻ᵐ / Σ eˣ⁻ᵐ, summed in the order of the experts on every level.
@inline(never)
private func scoreBySoftmax(
    _ logits: UnsafePointer<Float>, experts: Int, padded: Int, into scores: UnsafeMutablePointer<Float>
) {
    var largest = logits[0]
    for expert in 1..<padded where logits[expert] > largest { largest = logits[expert] }
    var expert = 0
    while expert < padded {
        store(exp(load(logits + expert) - splat(largest)), scores + expert)
        expert += laneCount
    }
    var sum: Float = 0
    for expert in 0..<experts { sum += scores[expert] }
    expert = 0
    while expert < padded {
        store(load(scores + expert) / splat(sum), scores + expert)
        expert += laneCount
    }
}

/// Makes the keys of all groups but the strongest −∞.
@inline(never)
private func closeGroups(
    _ args: RouteTokensArguments, scores: UnsafePointer<Float>, keys: UnsafeMutablePointer<Float>,
    strengths: UnsafeMutablePointer<Float>
) {
    let size = args.experts / args.groups
    for group in 0..<args.groups {
        var (first, second) = (-Float.infinity, -Float.infinity)
        for expert in group * size..<(group + 1) * size {
            var value = scores[expert]
            if let bias = args.bias { value += bias[expert] }
            if value > first {
                second = first
                first = value
            } else if value > second {
                second = value
            }
        }
        strengths[group] = args.sumsTwo && size > 1 ? first + second : first
    }
    for _ in 0..<args.keptGroups {
        // A group that was kept has the strength NaN, which is larger than nothing.
        var best = -1
        for group in 0..<args.groups where !(strengths[group] != strengths[group]) {
            if best < 0 || strengths[group] > strengths[best] { best = group }
        }
        strengths[best] = .nan
    }
    for group in 0..<args.groups where strengths[group] == strengths[group] {
        for expert in group * size..<(group + 1) * size { keys[expert] = -.infinity }
    }
}

/// Takes the largest keys, of equal ones the first, and weighs them by their scores.
@inline(never)
private func chooseExperts(
    _ keys: UnsafeMutablePointer<Float>, _ scores: UnsafePointer<Float>, _ args: RouteTokensArguments,
    ids: UnsafeMutablePointer<Int32>, weights: UnsafeMutablePointer<Float>
) {
    var sum: Float = 0
    for slot in 0..<args.chosen {
        var best = 0
        for expert in 1..<args.experts where keys[expert] > keys[best] { best = expert }
        keys[best] = -.infinity
        ids[slot] = Int32(truncatingIfNeeded: best)
        weights[slot] = scores[best]
        sum += scores[best]
    }
    for slot in 0..<args.chosen {
        if args.normalizes { weights[slot] = weights[slot] / (sum + 1e-20) }
        weights[slot] = weights[slot] * args.scale
    }
}
