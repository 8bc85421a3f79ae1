// Small values, for what ranks agree on before they compute.

extension Communicator {
    /// Gives every rank the lists of all ranks, which may have different lengths.
    public func gather(_ values: [Int]) throws(SparseKernelsError) -> [[Int]] {
        let counts = try gatherFixed([values.count]).map { $0[0] }
        let total = counts.reduce(0, +)
        let message = try MessageBuffer(of: Int.self, count: total)
        var place = counts[..<rank].reduce(0, +)
        var own = message.mutableElements(Int.self)
        for value in values {
            own[place] = value
            place += 1
        }
        try allGather(message, counts: counts.map { $0 * MemoryLayout<Int>.stride })
        let all = message.elements(Int.self)
        var (lists, start): ([[Int]], Int) = ([], 0)
        for count in counts {
            lists.append((start..<start + count).map { all[$0] })
            start += count
        }
        return lists
    }

    /// Gives every rank the texts of all ranks.
    public func gather(_ text: String) throws(SparseKernelsError) -> [String] {
        try gather(Array(text.utf8).map { Int($0) }).map {
            String(decoding: $0.map { UInt8(truncatingIfNeeded: $0) }, as: UTF8.self)
        }
    }

    /// Gives every rank the list of one.
    /// - Parameters:
    ///   - values: read on `root`; of the same length on every rank.
    ///   - root: the rank that has them.
    public func broadcast(_ values: [Int], from root: Int) throws(SparseKernelsError) -> [Int] {
        let message = try MessageBuffer(of: Int.self, count: values.count)
        var elements = message.mutableElements(Int.self)
        for i in values.indices { elements[i] = values[i] }
        try broadcast(message, message.allBytes, from: root)
        let received = message.elements(Int.self)
        return values.indices.map { received[$0] }
    }

    /// Throws on every rank unless all ranks say the same, as a plan does when it is made: of which shape it is, and by which
    /// version of the package.
    ///
    /// - Parameters:
    ///   - text: what this rank says.
    ///   - subject: the argument that the error names.
    /// - Throws: `.communication`, naming the first rank that says something else than rank 0.
    public func agree(on text: String, _ subject: String) throws(SparseKernelsError) {
        let texts = try gather(text)
        guard let other = texts.indices.first(where: { texts[$0] != texts[0] }) else { return }
        throw SparseKernelsError(
            .communication, subject, expected: "the same on all ranks of \(name), as on rank 0: \(texts[0])",
            actual: "on rank \(other): \(texts[other])")
    }

    private func gatherFixed(_ values: [Int]) throws(SparseKernelsError) -> [[Int]] {
        let message = try MessageBuffer(of: Int.self, count: values.count * count)
        var own = message.mutableElements(Int.self)
        for i in values.indices { own[rank * values.count + i] = values[i] }
        try allGather(message, counts: Array(repeating: values.count * MemoryLayout<Int>.stride, count: count))
        let all = message.elements(Int.self)
        return (0..<count).map { rank in values.indices.map { all[rank * values.count + $0] } }
    }
}
