import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Pool of recurrent states")
struct RecurrentStatePoolTests {
    static let layers: [[RecurrentStateShape]] = [
        [.convolution(channels: 5, width: 4), RecurrentStateShape(heads: 2, rows: 3, columns: 4)], [],
        [RecurrentStateShape(heads: 1, rows: 2, columns: 6, format: .bfloat16)],
    ]
    static let bytesPerSlot = (15 + 24) * 4 + 12 * 2

    /// Writes a number into all states of a sequence, as layers would.
    static func write(_ value: Int, to sequence: RecurrentStatePool.SequenceID, of pool: RecurrentStatePool) throws {
        let slot = try pool.slot(of: sequence)
        for (layer, shapes) in pool.layers.enumerated() {
            for index in shapes.indices {
                let states = try pool.states(layer: layer, index: index)
                let state = try Tensor<Float>([states.heads, states.rows, states.columns]) { _ in Float(value + layer + index) }
                try states.setState(state, of: slot)
            }
        }
    }

    /// The number that all states of a sequence hold; nil when they do not agree. States of zeros hold 0.
    static func value(of sequence: RecurrentStatePool.SequenceID, in pool: RecurrentStatePool) throws -> Int? {
        let slot = try pool.slot(of: sequence)
        var values: Set<Int> = []
        for (layer, shapes) in pool.layers.enumerated() {
            for index in shapes.indices {
                for element in try pool.states(layer: layer, index: index).state(of: slot).elements {
                    values.insert(element == 0 ? 0 : Int(element) - layer - index)
                }
            }
        }
        return values.count == 1 ? values.first : nil
    }

    @Test("sequences, checkpoints, forks and ways back, step by step")
    func story() throws {
        let pool = try RecurrentStatePool(layers: Self.layers, capacity: 5)
        #expect(pool.bytesPerSlot == Self.bytesPerSlot && pool.byteCount == 5 * Self.bytesPerSlot && pool.usedByteCount == 0)
        let a = try pool.makeSequence()
        #expect(try Self.value(of: a, in: pool) == 0 && pool.length(of: a) == 0 && pool.usedByteCount == Self.bytesPerSlot)
        try Self.write(10, to: a, of: pool)
        try pool.advance(a, by: 7)
        try pool.checkpoint(a)
        try Self.write(20, to: a, of: pool)
        try pool.advance(a, by: 2)
        #expect(try pool.checkpoints(of: a) == [7] && pool.length(of: a) == 9 && pool.usedSlotCount == 2)
        let b = try pool.fork(a)
        let c = try pool.fork(a, at: 7)
        #expect(try Self.value(of: b, in: pool) == 20 && pool.length(of: b) == 9 && pool.checkpoints(of: b) == [7])
        #expect(try Self.value(of: c, in: pool) == 10 && pool.length(of: c) == 7)
        // The checkpoint is shared by three sequences.
        #expect(pool.usedSlotCount == 4 && pool.freeSlotCount == 1)
        try pool.truncate(a, to: 7)
        #expect(try Self.value(of: a, in: pool) == 10 && pool.length(of: a) == 7)
        try Self.write(30, to: a, of: pool)
        // A step that was not finished is undone by the checkpoint at the present length.
        try pool.truncate(a, to: 7)
        #expect(try Self.value(of: a, in: pool) == 10)
        // Replacing a shared checkpoint leaves that of the others.
        try Self.write(40, to: a, of: pool)
        try pool.checkpoint(a)
        #expect(pool.usedSlotCount == 5)
        try pool.truncate(b, to: 7)
        #expect(try Self.value(of: b, in: pool) == 10)
        expectError(.capacityExceeded, "capacity", containing: "5", "0 are free") { _ = try pool.makeSequence() }
        expectError(.capacityExceeded, "capacity", containing: "1 more") { _ = try pool.fork(a) }
        expectError(.invalidArgument, "length", containing: "present 7", "[7]", "got 3") { try pool.truncate(a, to: 3) }
        expectError(.notFound, "length", containing: "[7]", "4") { try pool.removeCheckpoint(of: a, at: 4) }
        #expect(pool.usedSlotCount == 5 && pool.sequences.count == 3)
        try pool.removeCheckpoint(of: a, at: 7)
        try pool.reset(b)
        #expect(try Self.value(of: b, in: pool) == 0 && pool.length(of: b) == 0 && pool.checkpoints(of: b) == [])
        try pool.free(c)
        #expect(pool.usedSlotCount == 2)
        expectError(.unknownSequence, "sequence") { _ = try pool.slot(of: c) }
        expectError(.unknownSequence, "sequence") { try pool.free(c) }
        // A slot that comes back is zero again, and its sequence has a name of its own.
        let d = try pool.makeSequence()
        #expect(try d != c && Self.value(of: d, in: pool) == 0)
        try pool.truncate(a, to: 0)
        #expect(try Self.value(of: a, in: pool) == 0 && pool.length(of: a) == 0)
        #expect(try pool.batch([d, a], lengths: [3, 0]).slots == [pool.slot(of: d), pool.slot(of: a)])
        #expect(try pool.batch([a]).lengths == [1])
        expectError(.invalidArgument, "tokens", containing: "-1") { try pool.advance(a, by: -1) }
    }

    @Test("accounting is exact after any operations", arguments: [1, 2, 3, 4])
    func property(_ seed: UInt64) throws {
        /// What a sequence should be.
        struct Plain {
            var value: Int
            var length: Int
            /// Value and identity of the checkpoint of each length.
            var checkpoints: [Int: (value: Int, identity: Int)] = [:]
        }
        var random = SplitMix64(seed: seed)
        func draw(_ count: Int) -> Int { Int(random.next() % UInt64(count)) }
        let pool = try RecurrentStatePool(layers: [[RecurrentStateShape(heads: 1, rows: 1, columns: 2)]], capacity: 12)
        var model: [RecurrentStatePool.SequenceID: Plain] = [:]
        var (refused, identities) = (0, 0)
        func used() -> Int { model.count + Set(model.values.flatMap { $0.checkpoints.values.map(\.identity) }).count }
        for step in 0..<1500 {
            let full = used() == 12
            let name = model.keys.sorted { "\($0)" < "\($1)" }.dropFirst(model.isEmpty ? 0 : draw(model.count)).first
            do {
                switch (draw(10), name) {
                case (0, _), (_, nil):
                    model[try pool.makeSequence()] = Plain(value: 0, length: 0)
                case (1, let name?):
                    try pool.free(name)
                    model[name] = nil
                case (2, let name?):
                    let at = model[name]!.checkpoints.keys.sorted().first
                    let child = try pool.fork(name, at: at)
                    var plain = model[name]!
                    if let at {
                        (plain.value, plain.length) = (plain.checkpoints[at]!.value, at)
                        plain.checkpoints = plain.checkpoints.filter { $0.key <= at }
                    }
                    model[child] = plain
                case (3, let name?):
                    let child = try pool.fork(name)
                    model[child] = model[name]
                case (4, let name?), (5, let name?):
                    let plain = model[name]!
                    let old = plain.checkpoints[plain.length]?.identity
                    let shared = model.filter { $0.key != name && $0.value.checkpoints.values.contains { $0.identity == old } }
                    try pool.checkpoint(name)
                    if old == nil || !shared.isEmpty { identities += 1 }
                    let identity = old == nil || !shared.isEmpty ? identities : old!
                    model[name]!.checkpoints[plain.length] = (plain.value, identity)
                case (6, let name?):
                    let lengths = model[name]!.checkpoints.keys.sorted() + [0]
                    let length = lengths[draw(lengths.count)]
                    try pool.truncate(name, to: length)
                    model[name]!.value = model[name]!.checkpoints[length]?.value ?? 0
                    model[name]!.length = length
                    model[name]!.checkpoints = model[name]!.checkpoints.filter { $0.key <= length }
                case (7, let name?):
                    if draw(4) == 0 {
                        try pool.reset(name)
                        model[name] = Plain(value: 0, length: 0)
                    }
                case (_, let name?):
                    try Self.write(step, to: name, of: pool)
                    try pool.advance(name, by: 1 + draw(3))
                    model[name]!.value = step
                    model[name]!.length = try pool.length(of: name)
                }
            } catch let error as SparseKernelsError {
                #expect(error.code == .capacityExceeded && full, "\(error)")
                refused += 1
            }
            #expect(pool.usedSlotCount == used() && pool.usedByteCount == used() * 8 && pool.freeSlotCount == 12 - used())
            if step % 10 == 0 {
                for (name, plain) in model {
                    #expect(try Self.value(of: name, in: pool) == plain.value && pool.length(of: name) == plain.length)
                    #expect(try pool.checkpoints(of: name) == plain.checkpoints.keys.sorted())
                }
                #expect(Set(pool.sequences) == Set(model.keys))
            }
        }
        #expect(refused > 10, "the pool was never full")
    }

    @Test("a saved pool comes back with names, checkpoints and what is shared")
    func saving() throws {
        let directory = try TemporaryDirectory()
        let path = "\(directory.path)/states.safetensors"
        let pool = try RecurrentStatePool(layers: Self.layers, capacity: 9)
        let freed = try pool.makeSequence()
        let a = try pool.makeSequence()
        try pool.free(freed)
        try Self.write(1, to: a, of: pool)
        try pool.advance(a, by: 4)
        try pool.checkpoint(a)
        let b = try pool.fork(a)
        try Self.write(2, to: b, of: pool)
        try pool.advance(b, by: 5)
        try pool.save(to: path)
        let copy = try RecurrentStatePool(contentsOf: path)
        #expect(copy.layers == pool.layers && copy.capacity == 9 && copy.usedByteCount == pool.usedByteCount)
        #expect(try Self.value(of: a, in: copy) == 1 && Self.value(of: b, in: copy) == 2 && copy.length(of: b) == 9)
        try copy.truncate(b, to: 4)
        #expect(try Self.value(of: b, in: copy) == 1)
        expectError(.unknownSequence, "sequence") { _ = try copy.length(of: freed) }
        #expect(try ![a, b, freed].contains(copy.makeSequence()), "a name was used twice")
        expectError(.capacityExceeded, "capacity", containing: "3", "2") {
            _ = try RecurrentStatePool(contentsOf: path, capacity: 2)
        }
        #expect(try RecurrentStatePool(contentsOf: path, capacity: 3).freeSlotCount == 0)
        // One sequence moves to another pool.
        try pool.save(b, to: path)
        let other = try RecurrentStatePool(layers: Self.layers, capacity: 3)
        let c = try other.makeSequence()
        let d = try other.restore(contentsOf: path)
        #expect(try Self.value(of: d, in: other) == 2 && other.length(of: d) == 9 && other.checkpoints(of: d) == [4])
        #expect(try other.usedSlotCount == 3 && Self.value(of: c, in: other) == 0)
        expectError(.capacityExceeded, "capacity", containing: "2 more") { _ = try other.restore(contentsOf: path) }
        #expect(other.usedSlotCount == 3 && other.sequences.count == 2)
        #expect(try RecurrentStatePool(contentsOf: path).sequences == [b])
        let strange = try RecurrentStatePool(layers: [[]], capacity: 3)
        expectError(.malformedFile, describing: "recurrent.layers") { _ = try strange.restore(contentsOf: path) }
        expectError(.unknownSequence, "sequence") { try pool.save(freed, to: path) }
        // Pools without layers, states or sequences.
        for layers in [[], [[]], [[], []]] as [[[RecurrentStateShape]]] {
            let empty = try RecurrentStatePool(layers: layers, capacity: 2)
            let sequence = try empty.makeSequence()
            try empty.save(to: path)
            let copy = try RecurrentStatePool(contentsOf: path)
            #expect(copy.layers == layers && copy.sequences == [sequence] && copy.usedByteCount == 0)
        }
    }

    @Test("damaged files are errors, whatever was damaged")
    func hostile() throws {
        let directory = try TemporaryDirectory()
        let path = "\(directory.path)/states.safetensors"
        let pool = try RecurrentStatePool(layers: Self.layers, capacity: 4)
        let a = try pool.makeSequence()
        try pool.advance(a, by: 4)
        try pool.checkpoint(a)
        _ = try pool.fork(a)
        try pool.save(to: path)
        let bytes = directory.bytes("states.safetensors")
        let file = try SafetensorsFile(path: path)

        /// The file with one tensor or one entry replaced.
        func damaged(
            _ name: String, _ tensor: Tensor<Int64>? = nil, text: [String: String] = [:]
        ) throws -> SafetensorsFile {
            var writer = SafetensorsWriter(metadata: file.metadata.merging(text) { $1 })
            for entry in file.tensors where entry.name != name { try writer.add(entry.name, from: file) }
            if let tensor { try writer.add(name, tensor) }
            return try SafetensorsFile(bytes: writer.encoded())
        }
        func expectMalformed(
            _ name: String, _ shape: [Int], _ numbers: [Int64], sourceLocation: SourceLocation = #_sourceLocation
        ) throws {
            let file = try damaged(name, Tensor(shape, numbers))
            expectError(.malformedFile, describing: name, sourceLocation: sourceLocation) { _ = try RecurrentStatePool(file) }
        }
        try expectMalformed("recurrent.slots", [2], [0, 0])
        try expectMalformed("recurrent.slots", [2], [0, .max])
        try expectMalformed("recurrent.slots", [2], [0, -1])
        try expectMalformed("recurrent.slots", [1], [0])
        try expectMalformed("recurrent.slots", [2], [0, 3])
        try expectMalformed("recurrent.checkpointOffsets", [3], [0, 2, 1])
        try expectMalformed("recurrent.checkpointOffsets", [3], [0, 1, .max])
        try expectMalformed("recurrent.checkpoints", [2, 2], [5, 1, 4, 1])
        try expectMalformed("recurrent.checkpoints", [2, 2], [-1, 1, 4, 1])
        try expectMalformed("recurrent.checkpoints", [2, 2], [4, 0, 4, 0])
        try expectMalformed("recurrent.checkpoints", [2, 2], [4, 1, 3, 1])
        try expectMalformed("recurrent.checkpoints", [4], [4, 1, 4, 1])
        for text in [
            "", "0x1x1:float32;", "1x-1x5:float32;", "1x3x5:float64;", "1x3;", "9;", "1x3x5:float32", "01x3x5:float32;;;",
        ] {
            let file = try damaged("", text: ["recurrent.layers": text])
            // Fewer layers are a pool, too, with tensors that nobody asks for.
            if text == "" { continue }
            #expect(throws: SparseKernelsError.self, "\(text)") { _ = try RecurrentStatePool(file) }
        }
        for (key, text) in [
            ("recurrent.version", "2"), ("recurrent.capacity", "2"), ("recurrent.capacity", "-1"),
            ("recurrent.capacity", "99999999999999999999"), ("recurrent.layers", "4611686018427387904x4x4:float32;;;"),
        ] {
            let file = try damaged("", text: [key: text])
            let error = #expect(throws: SparseKernelsError.self) { _ = try RecurrentStatePool(file) }
            #expect(error?.code == .malformedFile, "\(key): \(text), \(String(describing: error))")
        }
        let missing = try damaged("recurrent.lengths")
        expectError(.notFound, describing: "recurrent.lengths") { _ = try RecurrentStatePool(missing) }
        // Every cut, and single bytes.
        for end in stride(from: 0, to: bytes.count, by: 37) {
            #expect(throws: SparseKernelsError.self) {
                _ = try RecurrentStatePool(SafetensorsFile(bytes: Array(bytes[..<end])))
            }
        }
        var random = SplitMix64(seed: 5)
        for _ in 0..<300 {
            var copy = bytes
            copy[Int(random.next() % UInt64(bytes.count))] = UInt8(truncatingIfNeeded: random.next())
            do { _ = try RecurrentStatePool(SafetensorsFile(bytes: copy)) } catch {}
        }
    }

    @Test("errors of pools name the argument")
    func errors() throws {
        expectError(.invalidArgument, "capacity", containing: "-1") { _ = try RecurrentStatePool(layers: [], capacity: -1) }
        expectError(.invalidShape, "layers[1][0].rows", containing: "-1") {
            _ = try RecurrentStatePool(layers: [[], [RecurrentStateShape(heads: 1, rows: -1, columns: 2)]], capacity: 1)
        }
        let pool = try RecurrentStatePool(layers: Self.layers, capacity: 1)
        expectError(.invalidArgument, "layer", containing: "3 layers", "3") { _ = try pool.states(layer: 3) }
        expectError(.invalidArgument, "index", containing: "0 states of layer 1") { _ = try pool.states(layer: 1) }
        expectError(.invalidArgument, "index", containing: "2 states", "2") { _ = try pool.states(layer: 0, index: 2) }
        let none = try RecurrentStatePool(layers: Self.layers, capacity: 0)
        expectError(.capacityExceeded, "capacity", containing: "0") { _ = try none.makeSequence() }
    }
}
