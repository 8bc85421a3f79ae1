public import ReasoningBranches
public import SparseKernels
public import SparseKernelsModels
public import Terminal

/// The pages of a tree of branches when it had the most branches, and the most pages with so many.
public struct BranchMemory: Codable, Hashable, Sendable {
    public struct Row: Codable, Hashable, Sendable {
        /// The number of the branch, and of the row of its parent.
        public let branch: Int
        public let parent: Int?
        public let tokens: Int
        public let pages: Int
        /// Pages that other branches have, too.
        public let sharedPages: Int
        /// Whether each page is a row's first: `S` for one that later rows share, `s` for one of a row above, `o` for an own one.
        public let kinds: String
    }

    public private(set) var rows: [Row] = []
    /// Pages that the tree used, and those that it would have used if every branch had its own.
    public private(set) var usedPages = 0
    public private(set) var unsharedPages = 0
    public let bytesPerPage: Int

    public init(bytesPerPage: Int) { self.bytesPerPage = bytesPerPage }

    /// Looks at a tree, and remembers it when it has more branches than ever before, or more pages with as many.
    public mutating func look(at tree: BranchTree) {
        guard (tree.cache.sequences.count, tree.cache.usedPageCount) > (rows.count, usedPages) else { return }
        let all = tree.pageRows()
        usedPages = tree.cache.usedPageCount
        unsharedPages = all.reduce(0) { $0 + $1.pages.count }
        rows = all.enumerated().map { index, row in
            let kinds = row.pages.indices.map { page in
                row.holders[page] == 1 ? "o" : row.firstRows[page] == index ? "S" : "s"
            }
            return Row(
                branch: row.branch.number, parent: row.parent, tokens: row.tokens, pages: row.pages.count,
                sharedPages: row.holders.count { $0 > 1 }, kinds: kinds.joined())
        }
    }

    /// The tree with the pages of each branch.
    public func chart(title: String) -> CellChart {
        CellChart(
            title: title,
            subtitle: "\(usedPages) pages of \(Format.number(Double(bytesPerPage) / 1024)) KB in use; without sharing "
                + "\(unsharedPages)",
            keys: ["shared with other branches (outlined: a page of a row above)", "own"],
            rows: rows.map { row in
                CellChart.Row(
                    row.parent == nil ? "root \(row.branch)" : "branch \(row.branch)", parent: row.parent,
                    cells: row.kinds.map {
                        $0 == "S" ? .filled(series: 0) : $0 == "s" ? .outlined(series: 0) : .filled(series: 1)
                    },
                    note: "\(row.tokens) tokens, \(row.pages - row.sharedPages) own pages")
            })
    }

    /// The tree as lines of text: a character per page, in bars of at most `width` characters.
    public func lines(width: Int = 60) -> [String] {
        let longest = rows.map(\.pages).max() ?? 0
        let perCharacter = max(1, (longest + width - 1) / max(1, width))
        return rows.map { row in
            let kinds = Array(row.kinds)
            let bar = stride(from: 0, to: kinds.count, by: perCharacter).map { start in
                let part = kinds[start..<min(start + perCharacter, kinds.count)]
                return part.contains("o") ? "█" : part.contains("S") ? "▓" : "░"
            }
            var (depth, place) = (0, row.parent)
            while let parent = place { (depth, place) = (depth + 1, rows[parent].parent) }
            let name = String(repeating: "  ", count: depth) + (depth == 0 ? "root" : "branch") + " \(row.branch)"
            return name.padding(to: 16) + bar.joined() + "  \(row.tokens) tokens, \(row.pages - row.sharedPages) own pages"
        }
    }

    /// One line for people.
    public var summary: String {
        "\(usedPages) pages (\(Format.number(Double(usedPages * bytesPerPage) / 1e6)) MB); without sharing \(unsharedPages)"
    }
}

extension String {
    fileprivate func padding(to width: Int) -> String { self + String(repeating: " ", count: max(1, width - count)) }
}

/// What `branch` says about a run.
public struct BranchReport: Codable, Hashable, Sendable {
    public struct Sample: Codable, Hashable, Sendable {
        public let text: String
        public let tokens: [Int]
        public let logProbability: Double
        public let meanLogProbability: Double
        public let end: String
    }

    public let mode: String
    public let promptTokens: Int
    /// Best first, or in the order of the spawn.
    public let samples: [Sample]
    /// The text of the parent after a join.
    public let joined: String?
    public let memory: BranchMemory
    public let seconds: Double
    public let decodedTokens: Int
    public let steps: Int

    public init(
        mode: String, promptTokens: Int, samples: [BranchSample], joined: String?, memory: BranchMemory,
        statistics: SessionStatistics
    ) {
        (self.mode, self.promptTokens, self.joined, self.memory) = (mode, promptTokens, joined, memory)
        self.samples = samples.map {
            Sample(
                text: $0.text, tokens: $0.tokens, logProbability: $0.logProbability,
                meanLogProbability: $0.meanLogProbability, end: GenerationReport.words($0.end))
        }
        seconds = statistics.decoding.total
        (decodedTokens, steps) = (statistics.decodedTokens, statistics.steps)
    }

    /// One paragraph for people.
    public var summary: String {
        let rate = seconds > 0 ? Double(decodedTokens) / seconds : nil
        return "\(promptTokens) tokens of prompt; \(decodedTokens) decoded in \(steps) steps at \(Format.number(rate))/s; "
            + memory.summary
    }
}

/// The runs of the command: samples of a prompt, beams, or children that are joined.
public struct BranchRun {
    public let branching: BranchingSession
    public let tokenizer: any Tokenizing
    public var request: BranchRequest
    public private(set) var memory: BranchMemory
    /// The bytes of the parent behind the prompt after a join.
    public private(set) var joined: [UInt8]?

    public init(_ branching: BranchingSession, tokenizer: any Tokenizing, request: BranchRequest) {
        self.branching = branching
        self.tokenizer = tokenizer
        self.request = request
        memory = BranchMemory(bytesPerPage: branching.tree.cache.configuration.bytesPerPage)
    }

    /// The best of several samples.
    public mutating func bestOf(
        _ count: Int, after prompt: [Int], by score: BranchScore
    ) throws(SparseKernelsError) -> [BranchSample] {
        var memory = memory
        defer { self.memory = memory }
        let tree = branching.tree
        return try branching.bestOf(count, after: prompt, request, by: score, tokenizer: tokenizer) { _ in
            memory.look(at: tree)
            return true
        }
    }

    /// The hypotheses of a beam search.
    public mutating func beams(
        _ width: Int, after prompt: [Int], lengthPenalty: Double
    ) throws(SparseKernelsError) -> [BranchSample] {
        var memory = memory
        defer { self.memory = memory }
        let tree = branching.tree
        return try branching.beamSearch(
            after: prompt, width: width, maximumTokens: request.maximumTokens, endTokens: request.endTokens,
            lengthPenalty: lengthPenalty, tokenizer: tokenizer
        ) {
            memory.look(at: tree)
        }
    }

    /// Children that continue a text each, decoded together and joined in the order of the spawn; then the parent goes on with all
    /// of their results behind its prompt (APR's protocol, with texts in place of its tags).
    ///
    /// - Parameters:
    ///   - texts: what each child begins with, behind the prompt.
    ///   - prompt: the parent's tokens.
    ///   - separator: follows each child's text in the parent.
    /// - Returns: the children's samples in the order of the spawn, and the parent's.
    public mutating func spawn(
        _ texts: [String], after prompt: [Int], separator: String
    ) throws(SparseKernelsError) -> [BranchSample] {
        let tree = branching.tree
        var memory = memory
        defer { self.memory = memory }
        let root = try tree.start(prompt)
        defer { try? tree.remove(root) }
        _ = try branching.step([root])
        let starts = texts.map { tokenizer.encode($0) }
        let children = try tree.spawn(
            starts.map { .fork(appending: $0) }, from: root, budget: .init(tokens: request.maximumTokens))
        var samples = try branching.decode(children, request, tokenizer: tokenizer) { _ in
            memory.look(at: tree)
            return true
        }
        // A sample's bytes end before its stop string, its tokens may not.
        let results = zip(starts, samples).flatMap { start, sample in
            start + tokenizer.encode(bytes: sample.bytes) + tokenizer.encode(separator)
        }
        try tree.join(root, at: prompt.count, appending: results)
        samples += try branching.decode([root], request, tokenizer: tokenizer) { _ in
            memory.look(at: tree)
            return true
        }
        joined = tokenizer.decode(results) + samples.last!.bytes
        return samples
    }
}
