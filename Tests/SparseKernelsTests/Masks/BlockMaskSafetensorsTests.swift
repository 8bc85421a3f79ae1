import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Block masks in files")
struct BlockMaskSafetensorsTests {
    private func read(_ writer: SafetensorsWriter) throws -> BlockMask {
        try BlockMask(SafetensorsFile(bytes: writer.encoded(), named: "mask.safetensors"))
    }

    @Test("masks come back from bytes", arguments: GridCase.all)
    func roundTrip(_ grid: GridCase) throws {
        for mask in try [BlockMaskTests.listed(grid.grid()), BlockMask(grid: grid.grid(), heads: 3) { _, _, _ in false }] {
            let back = try read(mask.safetensors())
            #expect(back == mask)
            #expect(back.grid.query.blockSize == mask.grid.query.blockSize)
            #expect(back.grid.key.blockSize == mask.grid.key.blockSize)
        }
    }

    @Test("masks come back from disk, beside other tensors too")
    func disk() throws {
        let directory = try TemporaryDirectory()
        let path = directory.path + "/mask.safetensors"
        let grid = try BlockGrid(queryLength: 700, keyLength: 1100, isCausal: true)
        let mask = try BlockMask.streaming(grid, sinkBlocks: 1, localBlocks: 2)
        try mask.write(to: path)
        #expect(try BlockMask(path: path) == mask)
        var writer = try mask.safetensors()
        writer.metadata["source"] = "streaming, 1 + 2 blocks"
        try writer.add("query", Tensor<Float>(zeros: [1, 700, 8]))
        try writer.write(to: path)
        #expect(try BlockMask(path: path) == mask)
        expectError(.inputOutput, directory.path + "/none") { _ = try BlockMask(path: directory.path + "/none") }
    }

    @Test("the file has the documented tensors and metadata")
    func schema() throws {
        let grid = try BlockGrid(
            query: BlockPartition(length: 7, blockSize: 4), key: BlockPartition(sizes: [3, 0, 6]), isCausal: true)
        let file = try SafetensorsFile(bytes: BlockMask.slidingWindow(grid, tokens: 2).safetensors().encoded())
        #expect(
            file.metadata == [
                "format": "sparsekernels.blockMask", "version": "1", "heads": "1", "causal": "true", "queryLength": "7",
                "queryBlockSize": "4",
            ])
        #expect(Set(file.tensors.map(\.name)) == ["rowOffsets", "columnIndices", "keySizes"])
        #expect(try file.tensor("rowOffsets", as: Int64.self).elements == [0, 2, 3])
        #expect(try file.tensor("columnIndices", as: Int32.self).elements == [0, 2, 2])
        #expect(try file.tensor("keySizes", as: Int64.self).elements == [3, 0, 6])
    }

    // MARK: - Hostile files

    /// The contents of a valid file of two rows and three columns, with one part replaced or removed.
    private func writer(
        metadata changes: [String: String?] = [:], rowOffsets: [Int64]? = [0, 2, 3], columnIndices: [Int32]? = [0, 2, 1],
        querySizes: [Int64]? = nil
    ) throws -> SafetensorsWriter {
        var writer = SafetensorsWriter(metadata: [
            "format": "sparsekernels.blockMask", "version": "1", "heads": "1", "causal": "false", "queryLength": "7",
            "queryBlockSize": "4", "keyLength": "12", "keyBlockSize": "4",
        ])
        for (key, value) in changes { writer.metadata[key] = value }
        if let rowOffsets { try writer.add("rowOffsets", Tensor([rowOffsets.count], rowOffsets)) }
        if let columnIndices { try writer.add("columnIndices", Tensor([columnIndices.count], columnIndices)) }
        if let querySizes { try writer.add("querySizes", Tensor([querySizes.count], querySizes)) }
        return writer
    }

    @Test("metadata that describe no mask are refused")
    func metadata() throws {
        #expect(try read(writer()).nonzeroBlocks() == 3)
        let keys = ["format", "version", "heads", "causal", "queryLength", "queryBlockSize", "keyLength", "keyBlockSize"]
        for key in keys {
            let argument = "mask.safetensors, metadata \"\(key)\""
            expectError(.notFound, argument) { _ = try read(writer(metadata: [key: nil])) }
            for text in ["", "x", "1.0", "+1", " 1", "01", "99999999999999999999", "TRUE"] {
                expectError(.malformedFile, argument) { _ = try read(writer(metadata: [key: text])) }
            }
        }
        expectError(.malformedFile, "mask.safetensors, metadata \"version\"", containing: "\"1\"", "\"2\"") {
            _ = try read(writer(metadata: ["version": "2"]))
        }
        for (key, argument, texts) in [
            ("heads", "heads", ["0", "-1", "9223372036854775807"]),
            ("queryLength", "length", ["-7", "9223372036854775807"]),
            ("queryLength", "rowOffsets", ["0"]), ("keyLength", "columnIndices[0]", ["0"]),
            ("queryBlockSize", "blockSize", ["0", "9223372036854775807"]),
            ("keyBlockSize", "blockSize", ["-1"]), ("queryLength", "rowOffsets", ["9"]),
            ("keyLength", "columnIndices[1]", ["8"]),
            ("heads", "rowOffsets", ["2"]),
        ] {
            for text in texts {
                expectError(.malformedFile, "mask.safetensors, \(argument)") { _ = try read(writer(metadata: [key: text])) }
            }
        }
    }

    @Test("tensors that hold no mask are refused")
    func tensors() throws {
        expectError(.notFound, "mask.safetensors, tensor \"rowOffsets\"") { _ = try read(writer(rowOffsets: nil)) }
        expectError(.notFound, "mask.safetensors, tensor \"columnIndices\"") { _ = try read(writer(columnIndices: nil)) }
        for (offsets, argument) in [
            ([], "rowOffsets"), ([0, 2], "rowOffsets"), ([0, -1, 3], "rowOffsets[1]"), ([0, 4, 3], "rowOffsets[1]"),
            ([0, Int64.max, 3], "rowOffsets[1]"), ([0, 2, .min], "rowOffsets"),
        ] as [([Int64], String)] {
            expectError(.malformedFile, "mask.safetensors, \(argument)") { _ = try read(writer(rowOffsets: offsets)) }
        }
        for (columns, argument) in [
            ([2, 2, 1], "columnIndices[1]"), ([0, 3, 1], "columnIndices[1]"), ([-1, 2, 1], "columnIndices[0]"),
            ([0, 2], "rowOffsets"), ([0, 2, .max], "columnIndices[2]"),
        ] as [([Int32], String)] {
            expectError(.malformedFile, "mask.safetensors, \(argument)") { _ = try read(writer(columnIndices: columns)) }
        }
        // Sizes together with a uniform description, and invalid sizes.
        expectError(.malformedFile, "mask.safetensors, metadata \"queryLength\"") { _ = try read(writer(querySizes: [4, 3])) }
        let uniform: [String: String?] = ["queryLength": nil, "queryBlockSize": nil]
        #expect(try read(writer(metadata: uniform, querySizes: [4, 3])) == read(writer()))
        expectError(.malformedFile, "mask.safetensors, metadata \"queryBlockSize\"") {
            _ = try read(writer(metadata: ["queryLength": nil], querySizes: [4, 3]))
        }
        for (sizes, argument) in [
            ([], "rowOffsets"), ([8, -1], "sizes[1]"), ([Int64.max, .max], "sizes"), ([4, 2, 1], "rowOffsets"),
        ] as [([Int64], String)] {
            expectError(.malformedFile, "mask.safetensors, \(argument)") {
                _ = try read(writer(metadata: uniform, querySizes: sizes))
            }
        }
        var matrix = try writer(rowOffsets: nil)
        try matrix.add("rowOffsets", Tensor<Int64>([1, 3], [0, 2, 3]))
        expectError(.malformedFile, "mask.safetensors, tensor \"rowOffsets\"", containing: "vector") { _ = try read(matrix) }
        var narrow = try writer(rowOffsets: nil)
        try narrow.add("rowOffsets", Tensor<Int32>([3], [0, 2, 3]))
        expectError(.invalidElementType, "mask.safetensors, tensor \"rowOffsets\"") { _ = try read(narrow) }
    }

    @Test("damaged files are typed errors or masks, never traps")
    func damage() throws {
        let bytes = try writer(querySizes: nil).encoded()
        var generator = SplitMix64(seed: 3)
        for _ in 0..<2000 {
            var damaged = bytes
            for _ in 0..<Int.random(in: 1...3, using: &generator) {
                damaged[Int.random(in: 0..<damaged.count, using: &generator)] = UInt8.random(in: 0...255, using: &generator)
            }
            if Bool.random(using: &generator) { damaged.removeLast(Int.random(in: 0...8, using: &generator)) }
            do throws(SparseKernelsError) {
                let mask = try BlockMask(SafetensorsFile(bytes: damaged))
                #expect(mask.visiblePairs >= 0 && mask.density <= 1)
            } catch {
                #expect([.malformedFile, .notFound, .invalidElementType].contains(error.code), "\(error)")
            }
        }
    }
}
