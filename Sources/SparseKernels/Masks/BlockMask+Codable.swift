// JSON and other coders. Decoding uses the throwing initialisers, so that decoded values are as valid as others. The work is
// proportional to the elements that the document really has.
//
//     BlockPartition  {"length": 1100, "blockSize": 128}, or {"sizes": [40, 0, 24]}
//     BlockGrid       {"query": partition, "key": partition, "isCausal": true}
//     BlockMask       {"grid": grid, "heads": 1, "rowOffsets": [0, …], "columnIndices": […]}

extension BlockPartition: Codable {
    private enum CodingKeys: String, CodingKey { case length, blockSize, sizes }

    /// - Throws: `DecodingError.dataCorrupted` for values that the initialisers refuse, with their message.
    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        if container.contains(.sizes) {
            if let other = [CodingKeys.length, .blockSize].first(where: container.contains) {
                throw DecodingError.dataCorruptedError(
                    forKey: other, in: container, debugDescription: "sizes give the length; \(other.rawValue) must be absent")
            }
            let sizes = try container.decode([Int].self, forKey: .sizes)
            self = try decoder.validated { () throws(SparseKernelsError) in try BlockPartition(sizes: sizes) }
        } else {
            let length = try container.decode(Int.self, forKey: .length)
            let blockSize = try container.decode(Int.self, forKey: .blockSize)
            self = try decoder.validated { () throws(SparseKernelsError) in
                try BlockPartition(length: length, blockSize: blockSize)
            }
        }
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.container(keyedBy: CodingKeys.self)
        if let blockSize {
            try container.encode(length, forKey: .length)
            try container.encode(blockSize, forKey: .blockSize)
        } else {
            try container.encode(sizes, forKey: .sizes)
        }
    }
}

extension BlockGrid: Codable {
    private enum CodingKeys: String, CodingKey { case query, key, isCausal }

    /// - Throws: `DecodingError.dataCorrupted` for values that the initialisers refuse, with their message.
    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        let query = try container.decode(BlockPartition.self, forKey: .query)
        let key = try container.decode(BlockPartition.self, forKey: .key)
        let isCausal = try container.decode(Bool.self, forKey: .isCausal)
        self = try decoder.validated { () throws(SparseKernelsError) in
            try BlockGrid(query: query, key: key, isCausal: isCausal)
        }
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.container(keyedBy: CodingKeys.self)
        try container.encode(query, forKey: .query)
        try container.encode(key, forKey: .key)
        try container.encode(isCausal, forKey: .isCausal)
    }
}

extension BlockMask: Codable {
    private enum CodingKeys: String, CodingKey { case grid, heads, rowOffsets, columnIndices }

    /// - Throws: `DecodingError.dataCorrupted` for values that the initialisers refuse, with their message.
    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        let grid = try container.decode(BlockGrid.self, forKey: .grid)
        let heads = try container.decode(Int.self, forKey: .heads)
        let rowOffsets = try container.decode([Int].self, forKey: .rowOffsets)
        let columnIndices = try container.decode([Int32].self, forKey: .columnIndices)
        self = try decoder.validated { () throws(SparseKernelsError) in
            try BlockMask(grid: grid, heads: heads, rowOffsets: rowOffsets, columnIndices: columnIndices)
        }
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.container(keyedBy: CodingKeys.self)
        try container.encode(grid, forKey: .grid)
        try container.encode(heads, forKey: .heads)
        try container.encode(rowOffsets, forKey: .rowOffsets)
        try container.encode(columnIndices, forKey: .columnIndices)
    }
}

extension Decoder {
    /// Returns the result of `make`, and reports its error as a decoding error.
    fileprivate func validated<Value>(_ make: () throws(SparseKernelsError) -> Value) throws -> Value {
        do {
            return try make()
        } catch {
            throw DecodingError.dataCorrupted(
                DecodingError.Context(codingPath: codingPath, debugDescription: error.description, underlyingError: error))
        }
    }
}
