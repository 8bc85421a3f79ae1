package import SparseKernels
import SparseKernelsReference

/// An endless sequence of damaged checkpoints: valid safetensors files whose tensors and metadata break a format's rules.
///
/// Damaged bytes rarely pass the header's checks. So most files are taken apart, changed and rewritten: names, types, shapes
/// with matching bytes, numbers and metadata. Some are damaged by `SafetensorsMutator` instead.
package struct CheckpointMutator {
    private struct Entry {
        var name: String
        var type: ElementType
        var shape: [Int]
        var bytes: [UInt8]
    }

    private struct File {
        var entries: [Entry] = []
        var metadata: [String: String] = [:]
    }

    private var random: SplitMix64
    private var headers: SafetensorsMutator
    private let samples: [File]

    /// - Parameter samples: valid files to start from, at least one.
    package init(seed: UInt64, samples: [[UInt8]]) throws(SparseKernelsError) {
        random = SplitMix64(seed: seed)
        headers = SafetensorsMutator(seed: seed, samples: samples)
        var files: [File] = []
        for sample in samples {
            let file = try SafetensorsFile(bytes: sample)
            var parts = File(metadata: file.metadata)
            for entry in file.tensors {
                let bytes = try file.bytes(entry.name).withUnsafeBytes { Array($0) }
                parts.entries.append(Entry(name: entry.name, type: entry.elementType, shape: entry.shape, bytes: bytes))
            }
            files.append(parts)
        }
        self.samples = files
    }

    package mutating func next() throws(SparseKernelsError) -> [UInt8] {
        if random.chance(1, of: 8) { return headers.next() }
        var file = random.pick(samples)
        if random.chance(1, of: 16) { file = merged(file, random.pick(samples)) }
        if random.chance(15, of: 16) { for _ in 0...random.below(3) { damage(&file) } }
        var writer = SafetensorsWriter(metadata: file.metadata)
        var names: Set<String> = []
        for entry in file.entries where names.insert(entry.name).inserted {
            try writer.add(entry.name, elementType: entry.type, shape: entry.shape, bytes: entry.bytes)
        }
        return try writer.encoded()
    }

    private func merged(_ a: File, _ b: File) -> File {
        File(entries: a.entries + b.entries, metadata: a.metadata.merging(b.metadata) { first, _ in first })
    }

    private mutating func damage(_ file: inout File) {
        if !file.metadata.isEmpty && random.chance(1, of: 4) { return damageMetadata(&file.metadata) }
        if file.entries.isEmpty { return }
        let index = random.below(file.entries.count)
        switch random.below(8) {
        case 0: file.entries.remove(at: index)
        case 1: file.entries[index].name = damagedName(file.entries[index].name, file.entries)
        case 2: changeType(&file.entries[index])
        case 3, 4: changeShape(&file.entries[index])
        case 5:
            // Gives the contents of one tensor the name of another.
            let other = random.pick(file.entries)
            let name = file.entries[index].name
            file.entries[index] = other
            file.entries[index].name = name
        default: changeNumbers(&file.entries[index])
        }
    }

    // MARK: - Tensors

    private mutating func damagedName(_ name: String, _ entries: [Entry]) -> String {
        let last = name.split(separator: ".").last.map { String($0) } ?? name
        switch random.below(4) {
        case 0: return last
        case 1: return name + random.pick([".", "_", "s", ".weight", "\u{0}", " "])
        case 2: return String(name.dropLast(last.count)) + (random.pick(entries).name.split(separator: ".").last ?? "")
        default: return String(name.dropLast(last.count)) + random.pick(Self.tensorNames)
        }
    }

    private static let tensorNames = [
        "qweight", "wscales", "wzeros", "wtscale", "wcscales", "smooth", "smooth_orig", "smooth_factor", "lora_down", "lora_up",
        "proj_down", "proj_up", "bias", "codes", "scales", "offsets", "channelScales", "down", "up", "s1_scales", "s1_szeros",
        "s2_scales", "s2_zeros", "qzeros", "g_idx", "alpha", "lora_A.weight", "lora_B.weight",
    ]

    private mutating func changeType(_ entry: inout Entry) {
        let types = ElementType.allCases + [.other("Q4_0"), .other("f16")]
        let sameSize = types.filter { $0.bitCount == entry.type.bitCount }
        entry.type = random.chance(2, of: 3) ? random.pick(sameSize) : random.pick(types)
        fit(&entry)
    }

    private mutating func changeShape(_ entry: inout Entry) {
        let axis = random.below(max(1, entry.shape.count))
        switch random.below(7) {
        case 0: entry.shape.reverse()
        case 1: entry.shape.insert(1, at: random.below(entry.shape.count + 1))
        case 2: entry.shape = [entry.shape.reduce(1, *)]
        case 3 where !entry.shape.isEmpty: entry.shape.remove(at: axis)
        case 4 where !entry.shape.isEmpty: entry.shape[axis] = random.pick([0, 1, 2, 3, 7, 16, 31, 64, 127, 128, 129])
        case 5 where !entry.shape.isEmpty: entry.shape[axis] = max(0, entry.shape[axis] + random.below(33) - 16)
        case 6 where !entry.shape.isEmpty: entry.shape[axis] *= 2
        default: entry.shape = []
        }
        // Extents multiply, but a file that is built and read thousands of times must be small.
        while entry.shape.reduce(1, *) > 1 << 16, let largest = entry.shape.max(), let at = entry.shape.firstIndex(of: largest)
        {
            entry.shape[at] = largest / 2
        }
        fit(&entry)
    }

    /// Repeats the bytes to the number that type and shape require, if the type's size is known.
    private func fit(_ entry: inout Entry) {
        guard let bits = entry.type.bitCount else { return }
        // The elements must end with a whole byte.
        if entry.shape.reduce(bits, *) % 8 != 0 { entry.shape.append(4) }
        let count = entry.shape.reduce(bits, *) / 8
        let bytes = entry.bytes.isEmpty ? [0] : entry.bytes
        entry.bytes = (0..<count).map { bytes[$0 % bytes.count] }
    }

    private mutating func changeNumbers(_ entry: inout Entry) {
        if entry.bytes.isEmpty { return }
        switch random.below(4) {
        case 0: entry.bytes = [UInt8](repeating: random.pick([0, 0x7f, 0x80, 0xff, 1]), count: entry.bytes.count)
        case 1:
            // Replaces one element by NaN, infinity, the largest, the smallest or a negative number.
            let size = entry.type.byteCount ?? 1
            let start = random.below(entry.bytes.count / size) * size
            for i in start..<start + size { entry.bytes[i] = random.pick([0, 0xff]) }
            entry.bytes[start + size - 1] = random.pick([0x7f, 0x7b, 0x7c, 0x80, 0xbf, 0xff, 0])
        case 2: for i in entry.bytes.indices { entry.bytes[i] = UInt8(truncatingIfNeeded: random.next()) }
        default: for _ in 0...random.below(8) { entry.bytes[random.below(entry.bytes.count)] ^= 1 << UInt8(random.below(8)) }
        }
    }

    // MARK: - Metadata

    private static let texts = [
        "", " ", "0", "-1", "1", "2", "16", "63", "64", "65", "128", "1024", "1025", "2147483648", "9223372036854775807",
        "9223372036854775808", "1e400", "nan", "-inf", "0.17", "+5", "007", "row", "int4", "uint4", "fp4", "int8",
        "int8PerToken",
        "gelu", "silu", "none", "bias", "codes scales", "codes codes", "{}", "[]", "null", "{\"method\": \"awq\"}",
        "{\"weight\": {\"dtype\": \"fp4_e2m1_all\", \"group_size\": 16}}",
        "{\"weight\": {\"group_size\": 9999999999999999999}}",
        "{\"weight\": 1}", "é", "\u{0}",
    ]

    private mutating func damageMetadata(_ metadata: inout [String: String]) {
        let keys = metadata.keys.sorted()
        let key = random.pick(keys)
        switch random.below(4) {
        case 0: metadata[key] = nil
        case 1: metadata[key] = metadata[random.pick(keys)]
        default: metadata[key] = random.pick(Self.texts)
        }
    }
}
