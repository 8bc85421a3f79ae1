import ReasoningBranches
import Testing

@Suite("Snippets of the ReasoningBranches guide")
struct ReasoningBranchesSnippets {
    /// Stands for a model: appends keys and values of all layers, and returns the most probable next token of every branch.
    static func run(_ step: BranchTree.Step, _ cache: PagedKVCache) throws -> [Int] {
        for (tokens, sequence) in zip(step.tokens, step.sequences) {
            let rows = try Tensor<Float>(zeros: [2, tokens.count, 16])
            for layer in 0..<cache.configuration.layers {
                try cache.append(key: rows.view(), value: rows.view(), to: sequence, layer: layer)
            }
        }
        return step.tokens.map { $0.last! + 1 }
    }

    @Test func branches() throws {
        let cache = try PagedKVCache(KVCacheConfiguration(layers: 2, kvHeads: 2, headDim: 16, pageCapacity: 64))
        let prompt = Array(1...200)
        let run = { (step: BranchTree.Step) in try Self.run(step, cache) }

        let tree = BranchTree(cache: cache, seed: 1)
        let root = try tree.start(prompt)
        _ = try run(tree.step()!)  // the prompt, once
        try tree.spawn(Array(repeating: .fork(), count: 4), from: root, budget: .init(tokens: 8))  // root waits
        while let step = try tree.step() {  // what is pending, of all branches, as one batch
            for (branch, token) in zip(step.branches, try run(step)) {
                let goesOn = try tree.remainingTokens(of: branch) > 0
                if goesOn { try tree.append([token], to: branch) } else { try tree.finish(branch) }
            }
        }
        try tree.join(root, at: 150) { outcomes in outcomes.flatMap(\.newTokens) }  // in the order of the spawn

        #expect(try tree.tokens(of: root).count == 150 + 4 * 8)
        #expect(try tree.state(of: root) == .running && cache.usedPageCount == 3)
    }

    @Test func bestOfN() throws {
        let cache = try PagedKVCache(KVCacheConfiguration(layers: 2, kvHeads: 2, headDim: 16, pageCapacity: 64))
        let tree = BranchTree(cache: cache, seed: 1)
        let root = try tree.start(Array(1...200))
        while let step = try tree.step() { _ = try Self.run(step, cache) }

        let samples = try tree.spawn(Array(repeating: .fork(), count: 16), from: root)
        print(cache.usedPageCount)  // 4: the samples share the pages of the prompt
        let number = try tree.nextRandom(of: samples[3])  // the same in every batch
        try tree.cancel(samples[5])  // its pages are free at once
        try tree.promote(samples[3])  // root goes on as this one; the others are cancelled

        #expect(try cache.usedPageCount == 4 && tree.tokens(of: root).count == 200)
        #expect(number != (try tree.nextRandom(of: root)))
    }

    @Test func prefixes() throws {
        let cache = try PagedKVCache(KVCacheConfiguration(layers: 2, kvHeads: 2, headDim: 16, pageCapacity: 64))
        let instructions = Array(1...100)

        let index = PrefixIndex(cache: cache)
        let tree = BranchTree(cache: cache, prefixes: index)
        let first = try tree.start(instructions + [7, 8, 9])
        while let step = try tree.step() { _ = try Self.run(step, cache) }
        try tree.finish(first, remembers: true)
        try tree.start(instructions + [5, 5])
        let step = try tree.step()!
        print(step.tokens)  // [[5, 5]]: the rest is in the cache

        #expect(step.tokens == [[5, 5]])
        #expect(index.matchLength(instructions + [5, 5]) == 100 && index.tokenCount == 103)
    }
}
