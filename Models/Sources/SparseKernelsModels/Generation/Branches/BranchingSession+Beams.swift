import Foundation
import ReasoningBranches
public import SparseKernels

extension BranchingSession {
    /// A beam: a branch, and the score of what it has.
    private struct Beam {
        let branch: Branch
        var tokens: [Int]
        var logProbability: Double
    }

    /// A token behind a beam.
    private struct Candidate {
        let beam: Int
        let token: Int
        let logProbability: Double
    }

    /// Finds the most probable continuations that a search of bounded width meets.
    ///
    /// Each step keeps the `width` best tokens behind all beams; a beam with several of them divides, one with none is cancelled
    /// at once. It ends when no beam can become better than the `width` best hypotheses that have ended.
    ///
    /// - Parameters:
    ///   - width: beams, 1 or more. 1 is greedy decoding.
    ///   - prompt: one or more tokens.
    ///   - maximumTokens: tokens of a hypothesis, at most. 0 or more.
    ///   - endTokens: tokens that end a hypothesis.
    ///   - lengthPenalty: hypotheses are ranked by logProbability / tokens^lengthPenalty, end token included. 0 is the sum, 1 the
    ///     mean.
    ///   - tokenizer: makes text; nil for tokens alone.
    ///   - onStep: called after every step that the beams have run.
    /// - Returns: up to `width` hypotheses, best first. Their branches are gone.
    /// - Throws: `.invalidArgument` for values out of range; `.capacityExceeded`. Nothing is left in the cache then.
    public func beamSearch(
        after prompt: [Int], width: Int, maximumTokens: Int, endTokens: Set<Int> = [], lengthPenalty: Double = 0,
        tokenizer: (any Tokenizing)? = nil, onStep: () throws(SparseKernelsError) -> Void = {}
    ) throws(SparseKernelsError) -> [BranchSample] {
        for (name, isValid, value) in [
            ("width", width >= 1, "\(width)"), ("maximumTokens", maximumTokens >= 0, "\(maximumTokens)"),
            ("lengthPenalty", lengthPenalty >= 0 && lengthPenalty.isFinite, "\(lengthPenalty)"),
        ] where !isValid {
            throw SparseKernelsError(
                .invalidArgument, name, expected: name == "width" ? "1 or more" : "0 or more", actual: value)
        }
        func score(_ logProbability: Double, _ count: Int) -> Double {
            logProbability / pow(Double(max(1, count)), lengthPenalty)
        }
        let root = try tree.start(prompt)
        defer { try? tree.remove(root) }
        var beams = [Beam(branch: root, tokens: [], logProbability: 0)]
        var ended: [(sample: BranchSample, score: Double)] = []
        for length in 0..<maximumTokens where !beams.isEmpty {
            guard let rows = try step(beams.map(\.branch)) else { break }
            try onStep()
            var candidates: [Candidate] = []
            // Rows are in the order in which branches were made, beams in that of their scores.
            let places = Dictionary(uniqueKeysWithValues: rows.branches.enumerated().map { ($1, $0) })
            for (index, beam) in beams.enumerated() {
                let probabilities = try LogProbabilities(rows.logits.span.extracting(rows.elements(places[beam.branch]!)))
                for token in probabilities.best(width + endTokens.count) {
                    let logProbability = beam.logProbability + probabilities.values[token]
                    if logProbability == -.infinity { continue }
                    candidates.append(Candidate(beam: index, token: token, logProbability: logProbability))
                }
            }
            candidates.sort {
                ($0.logProbability, $1.beam, $1.token) > ($1.logProbability, $0.beam, $0.token)
            }
            var kept: [Candidate] = []
            for candidate in candidates where kept.count < width {
                guard endTokens.contains(candidate.token) else {
                    kept.append(candidate)
                    continue
                }
                let tokens = beams[candidate.beam].tokens
                ended.append(
                    (
                        sample(tokens, candidate.logProbability, .endToken(candidate.token), tokenizer),
                        score(candidate.logProbability, tokens.count + 1)
                    ))
            }
            ended.sort { $0.score > $1.score }
            if ended.count >= width, let best = kept.first {
                // Probabilities only fall; a penalty helps most at the greatest length.
                let most = score(best.logProbability, lengthPenalty == 0 ? 1 : maximumTokens + 1)
                if most <= ended[width - 1].score { return ended.prefix(width).map(\.sample) }
            }
            beams = try divide(beams, kept, isFirst: length == 0)
        }
        for beam in beams {
            ended.append(
                (sample(beam.tokens, beam.logProbability, .length, tokenizer), score(beam.logProbability, beam.tokens.count)))
        }
        return ended.enumerated().sorted { (-$0.element.score, $0.offset) < (-$1.element.score, $1.offset) }
            .prefix(width).map(\.element.sample)
    }

    private func sample(
        _ tokens: [Int], _ logProbability: Double, _ end: GenerationResult.End, _ tokenizer: (any Tokenizing)?
    ) -> BranchSample {
        BranchSample(
            branch: nil, tokens: tokens, bytes: tokenizer.map { tokenizer in tokens.flatMap(tokenizer.bytes(of:)) } ?? [],
            logProbability: logProbability, end: end)
    }

    /// Makes the beams of the next step: beams without a candidate go first, so that their pages are there for the others.
    private func divide(
        _ beams: [Beam], _ kept: [Candidate], isFirst: Bool
    ) throws(SparseKernelsError) -> [Beam] {
        if isFirst {
            let root = beams[0].branch
            let children = try tree.spawn(kept.map { .fork(appending: [$0.token]) }, from: root)
            return zip(children, kept).map { Beam(branch: $0, tokens: [$1.token], logProbability: $1.logProbability) }
        }
        for (index, beam) in beams.enumerated() where !kept.contains(where: { $0.beam == index }) {
            try tree.cancel(beam.branch)
        }
        var next: [Beam] = []
        var continued = Set<Int>()
        // The best candidate of a beam goes on in its branch, once the others have forked it.
        for candidate in kept {
            let beam = beams[candidate.beam]
            let isContinued = continued.insert(candidate.beam).inserted
            let branch = isContinued ? beam.branch : try tree.fork(beam.branch, appending: [candidate.token])
            next.append(
                Beam(branch: branch, tokens: beam.tokens + [candidate.token], logProbability: candidate.logProbability))
        }
        for (place, candidate) in kept.enumerated() where next[place].branch == beams[candidate.beam].branch {
            try tree.append([candidate.token], to: next[place].branch)
        }
        return next
    }
}
