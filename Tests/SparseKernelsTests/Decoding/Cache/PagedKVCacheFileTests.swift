import Foundation
import HostileFiles
import SparseKernels
import SparseKernelsReference
import Testing

@Suite("Paged KV cache: files")
struct PagedKVCacheFileTests {
    /// The bytes that `save` writes.
    private func saved(_ cache: PagedKVCache) throws -> [UInt8] {
        let path = FileManager.default.temporaryDirectory.appendingPathComponent("\(UUID()).safetensors").path
        defer { try? FileManager.default.removeItem(atPath: path) }
        try cache.save(to: path)
        return try Array(Data(contentsOf: URL(fileURLWithPath: path)))
    }

    private func restored(_ bytes: [UInt8], pageCapacity: Int? = nil) throws -> PagedKVCache {
        try PagedKVCache(SafetensorsFile(bytes: bytes, named: "cache"), pageCapacity: pageCapacity)
    }

    /// Sequences that share pages, with holes, an empty sequence and a freed one, in a pool with gaps.
    private func sample(_ small: SmallCache) throws -> PagedKVCacheModel {
        let model = try PagedKVCacheModel(small.configuration(pageCapacity: 20))
        let (first, freed, parent) = (model.make(), model.make(), model.make())
        try model.append(20, to: first)
        try model.append(40, to: freed)
        try model.append(70, to: parent)
        try model.append(3, to: parent, layer: 1)
        _ = model.make()
        _ = try model.fork(parent)
        try model.append(5, to: model.fork(parent, at: 50))
        try model.discard(16..<64, of: parent)
        try model.free(freed)
        return model
    }

    // MARK: - Round trips

    @Test("sequences, shared pages and contents come back", arguments: SmallCache.all)
    func roundTrip(_ small: SmallCache) throws {
        let model = try sample(small)
        let before = try model.snapshot()
        let bytes = try saved(model.cache)
        let cache = try restored(bytes)
        #expect(cache.configuration == model.configuration)
        #expect(cache.usedPageCount == model.cache.usedPageCount)
        #expect(cache.sequences == model.cache.sequences)
        #expect(try model.snapshot() == before, "saving changed the cache")
        // Pages are renumbered and everything else is equal, and saving the copy gives the same file.
        model.replaceCache(cache)
        try model.check("restored")
        #expect(try saved(cache) == bytes)
        #expect(bytes.count < cache.usedByteCount + 4096)
        // Writing to a sequence that shares pages still copies the page.
        for index in model.sequences.indices { try model.append(2, to: index) }
        try model.overwrite(0..<3, of: 1, layer: 0)
        try model.check("continued")
    }

    @Test("an empty cache comes back from a file")
    func empty() throws {
        let model = try PagedKVCacheModel(SmallCache.all[4].configuration())
        model.replaceCache(try restored(saved(model.cache)))
        try model.check("empty")
        try model.append(3, to: model.make())
        try model.check("then 3 tokens")
    }

    @Test("names of freed sequences stay unknown")
    func names() throws {
        let cache = try PagedKVCache(SmallCache.all[2].configuration())
        let (gone, kept) = (cache.makeSequence(), cache.makeSequence())
        try cache.free(gone)
        let copy = try restored(saved(cache))
        #expect(copy.sequences == [kept])
        let next = copy.makeSequence()
        #expect(next != gone && next != kept)
        let decoded = try JSONDecoder().decode(PagedKVCache.SequenceID.self, from: JSONEncoder().encode(kept))
        #expect(try copy.length(of: decoded) == 0)
    }

    @Test("a cache comes back with another number of pages and another instruction set")
    func otherCapacity() throws {
        let model = try sample(SmallCache.all[1])
        let bytes = try saved(model.cache)
        let used = model.cache.usedPageCount
        let error = #expect(throws: SparseKernelsError.self) { try restored(bytes, pageCapacity: used - 1) }
        #expect(error?.code == .capacityExceeded && error?.argument == "pageCapacity")
        #expect(throws: SparseKernelsError.self) { try restored(bytes, pageCapacity: 0) }
        for pageCapacity in [used, 1000] {
            let cache = try restored(bytes, pageCapacity: pageCapacity)
            #expect(cache.freePageCount == pageCapacity - used)
        }
        let portable = try PagedKVCache(SafetensorsFile(bytes: bytes), instructionSet: .portable)
        model.replaceCache(portable)
        try model.check("portable")
    }

    @Test("a file that cannot be written or read is an error")
    func paths() throws {
        let cache = try PagedKVCache(SmallCache.all[2].configuration())
        let path = "/nowhere/cache.safetensors"
        #expect(throws: SparseKernelsError.self) { try cache.save(to: path) }
        let error = #expect(throws: SparseKernelsError.self) { try PagedKVCache(contentsOf: path) }
        #expect(error?.code == .inputOutput)
    }

    /// Rows of floats are padded to 16 channels, so that a file that says 10 instead of 9 has equally many bytes.
    @Test("a padded channel is 0")
    func padding() throws {
        let model = try sample(SmallCache.all[2])
        let cache = try restored(changed(saved(model.cache), metadata: ["headDim": "10"]))
        let keys = try cache.keys(of: model.sequences[0].id)
        #expect(keys.shape == [2, 20, 10] && (0..<40).allSatisfy { keys[flat: $0 * 10 + 9] == 0 })
    }

    // MARK: - Damage

    /// The file with tensors and metadata replaced, or left out for nil.
    private func changed(
        _ bytes: [UInt8], metadata: [String: String?] = [:], _ change: (inout Parts) throws -> Void = { _ in }
    ) throws -> [UInt8] {
        let file = try SafetensorsFile(bytes: bytes)
        var parts = Parts(
            generations: try file.tensor("generations").elements, lengths: try file.tensor("lengths").elements,
            tableOffsets: try file.tensor("tableOffsets").elements, tables: try file.tensor("tables").elements)
        parts.layers = 2
        try change(&parts)
        var writer = SafetensorsWriter(metadata: file.metadata)
        for (key, value) in metadata { writer.metadata[key] = value }
        try writer.add("generations", Tensor([parts.generations.count], parts.generations))
        try writer.add("lengths", Tensor([parts.lengths.count / parts.layers, parts.layers], parts.lengths))
        try writer.add("tableOffsets", Tensor([parts.tableOffsets.count], parts.tableOffsets))
        try writer.add("tables", Tensor([parts.tables.count], parts.tables))
        for entry in file.tensors where !["generations", "lengths", "tableOffsets", "tables"].contains(entry.name) {
            if entry.name == parts.leftOut { continue }
            try writer.add(entry.name, from: file)
        }
        return try writer.encoded()
    }

    private struct Parts {
        var generations: [UInt32]
        var lengths: [Int64]
        var tableOffsets: [Int64]
        var tables: [Int32]
        var layers = 2
        var leftOut = ""
    }

    @Test("numbers that make no cache are errors of the file")
    func damagedNumbers() throws {
        // The sequences are 0, 1 (freed), 2, 3 (empty), 4 and 5.
        let bytes = try saved(sample(SmallCache.all[0]).cache)
        _ = try restored(changed(bytes))
        let damages: [(String, (inout Parts) -> Void)] = [
            ("a page too far", { $0.tables[0] = 12 }), ("a huge page", { $0.tables[0] = .max }),
            ("a negative page", { $0.tables[0] = -2 }), ("a page twice in a table", { $0.tables[1] = $0.tables[0] }),
            ("a page at two positions", { $0.tables[2] = $0.tables[1] }),
            ("a page in no table", { $0.tables[0] = $0.tables[2] }),
            ("a hole at the end", { $0.tables[1] = -1 }), ("a hole in an open page", { $0.tables[6] = -1 }),
            ("offsets that start late", { $0.tableOffsets[0] = 1 }),
            ("offsets that descend", { $0.tableOffsets[2] = 1 }), ("a negative offset", { $0.tableOffsets[1] = -1 }),
            ("offsets that end late", { $0.tableOffsets[6] += 1 }), ("a huge offset", { $0.tableOffsets[1] = .max }),
            ("an offset less", { $0.tableOffsets.removeLast() }), ("no offset", { $0.tableOffsets = [] }),
            ("an entry more", { $0.tables.append(0) }), ("no tables", { $0.tables = [] }),
            ("a negative length", { $0.lengths[0] = -1 }), ("the least length", { $0.lengths[0] = .min }),
            ("a huge length", { $0.lengths[1] = .max }), ("a length beyond the table", { $0.lengths[0] = 33 }),
            (
                "lengths below the table",
                {
                    $0.lengths[0] = 16; $0.lengths[1] = 16
                }
            ),
            ("a sequence less", { $0.generations.removeLast() }), ("a sequence more", { $0.generations.append(1) }),
            ("a freed sequence with tokens", { $0.generations[0] += 1 }),
            ("lengths of another number of layers", { $0.layers = 1 }), ("pages left out", { $0.leftOut = "values" }),
        ]
        for (name, damage) in damages {
            let file = try changed(bytes) { damage(&$0) }
            let error = #expect(throws: SparseKernelsError.self, "\(name)") { try restored(file) }
            let code: SparseKernelsError.Code = name == "pages left out" ? .notFound : .malformedFile
            #expect(error?.code == code, "\(name): \(String(describing: error))")
        }
    }

    @Test("metadata that make no cache are errors of the file")
    func damagedMetadata() throws {
        let bytes = try saved(sample(SmallCache.all[0]).cache)
        let damages: [(String, [String?])] = [
            ("format", [nil, "", "sparsekernels.blockMask"]), ("version", [nil, "1", "02"]),
            ("layers", [nil, "0", "-1", "3", "1", "+2", "2.0", "9223372036854775807", "9223372036854775808"]),
            ("kvHeads", ["0", "1", "3", "65536", "9223372036854775807"]), ("headDim", ["0", "17", "9223372036854775807"]),
            ("valueDim", ["0", "256", "17"]), ("pageSize", ["0", "6", "32", "-16"]),
            ("pageCapacity", [nil, "0", "1", "-1", "9223372036854775807", "16777217"]),
            ("keyFormat", [nil, "", "int4", "float64"]), ("valueFormat", [nil, "int8", "F16"]),
            ("keyEstimates", [nil, "true", "1"]), ("metadataKind", [nil, "max", "mean"]),
            ("metadataFormat", [nil, "float16", "int4", "bfloat16"]), ("logicalPageSize", [nil, "0", "3", "8", "-4"]),
        ]
        for (key, values) in damages {
            for value in values where !(key == "metadataKind" && value == nil) {
                let file = try changed(bytes, metadata: [key: value])
                let error = #expect(throws: SparseKernelsError.self, "\(key) \(value ?? "-")") { try restored(file) }
                #expect(
                    [.malformedFile, .notFound].contains(error?.code), "\(key) \(value ?? "-"): \(String(describing: error))")
            }
        }
        // Without page metadata in the file, the cache keeps none.
        let plain = try restored(changed(bytes, metadata: ["metadataKind": nil]))
        #expect(plain.configuration.metadata == nil)
    }

    @Test("two thousand damaged files only give typed errors, or caches that work")
    func mutated() throws {
        let samples = try SmallCache.all.map { try saved(sample($0).cache) }
        var mutator = SafetensorsMutator(seed: 11, samples: samples)
        var random = SplitMix64(seed: 12)
        var (accepted, rejected) = (0, 0)
        for step in 0..<2000 {
            var bytes = step % 2 == 0 ? mutator.next() : random.pick(samples)
            if step % 2 == 1 {
                // Numbers of tables, lengths and offsets are small parts of a file, which damage at random places rarely meets.
                let file = try SafetensorsFile(bytes: bytes)
                let start = bytes.count - file.tensors.map(\.byteRange.upperBound).max()!
                let small = file.tensors.filter { ["tables", "lengths", "tableOffsets", "generations"].contains($0.name) }
                for _ in 0...random.below(2) {
                    bytes[start + small[random.below(small.count)].byteRange.randomElement(using: &random)!] = random.pick([
                        0, 1, 2, 3, 7, 16, 127, 128, 255,
                    ])
                }
            }
            do {
                let cache = try restored(bytes)
                try use(cache)
                accepted += 1
            } catch is SparseKernelsError {
                rejected += 1
            }
        }
        #expect(accepted > 50 && rejected > 500, "\(accepted) accepted, \(rejected) rejected")
    }

    /// Reads and writes all that the cache claims to have.
    private func use(_ cache: PagedKVCache) throws {
        let configuration = cache.configuration
        let key = try Tensor<Float>(zeros: [configuration.kvHeads, 1, configuration.headDim])
        let value = try Tensor<Float>(zeros: [configuration.kvHeads, 1, configuration.valueDim])
        for sequence in cache.sequences {
            for layer in 0..<configuration.layers {
                let length = try cache.length(of: sequence, layer: layer)
                // Reading discarded tokens is an error.
                if try !cache.pageTable(of: sequence).contains(-1) {
                    #expect(try cache.keys(of: sequence, layer: layer).shape[1] == length)
                    #expect(try cache.values(of: sequence, layer: layer).shape[1] == length)
                }
                if cache.freePageCount > 1 {
                    try cache.append(key: key.view(), value: value.view(), to: sequence, layer: layer, on: .serial)
                }
            }
            try cache.free(sequence)
        }
        #expect(cache.usedPageCount == 0)
    }
}
