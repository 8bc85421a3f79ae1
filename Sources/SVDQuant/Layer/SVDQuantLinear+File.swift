public import SparseKernels

// Layers in safetensors files. Docs/Layouts/SVDQuantFile.md describes the schema.

extension SVDQuantLinear {
    /// Names of tensors and metadata. In files, they follow the layer's name and a dot.
    private enum Name {
        static let format = "format"
        static let formatValue = "sparsekernels.svdquant"
        static let version = "version"
        static let versionValue = "1"

        static let code = "code"
        static let groupSize = "groupSize"
        static let wholeRow = "row"
        static let outFeatures = "outFeatures"
        static let inFeatures = "inFeatures"
        static let rank = "rank"
        static let activation = "activation"
        static let shift = "shift"
        static let epilogue = "epilogue"
        static let tensors = "tensors"

        static let codes = "codes"
        static let scales = "scales"
        static let offsets = "offsets"
        static let channelScales = "channelScales"
        static let smooth = "smooth"
        static let down = "down"
        static let up = "up"
        static let bias = "bias"
        static let allTensors = [bias, channelScales, codes, down, offsets, scales, smooth, up]

        static func of(_ name: String, in layer: String) -> String { layer.isEmpty ? name : "\(layer).\(name)" }
    }

    // MARK: - Writing

    /// Writes a file with this layer alone, in one step. An existing file is either replaced completely or left unchanged.
    ///
    /// - Parameters:
    ///   - path: path of the file.
    ///   - prefix: the layer's name in the file; empty for none.
    /// - Throws: `.inputOutput`, or the errors of `write(to:prefix:)` with a writer.
    public func write(to path: String, prefix: String = "") throws(SparseKernelsError) {
        var writer = SafetensorsWriter()
        try write(to: &writer, prefix: prefix)
        try writer.write(to: path)
    }

    /// Adds the layer to a file that may have other layers, tensors and metadata.
    ///
    /// Each floating-point tensor has the smallest type that represents all its values exactly: 16 bits for 16-bit
    /// quantisation, for example. Reading returns the same bits.
    ///
    /// - Parameters:
    ///   - writer: the writer of the file.
    ///   - prefix: the layer's name in the file; empty for none.
    /// - Throws: `.invalidArgument` for a name that is taken, or a writer whose metadata state another format.
    public func write(to writer: inout SafetensorsWriter, prefix: String) throws(SparseKernelsError) {
        for (key, value) in [(Name.format, Name.formatValue), (Name.version, Name.versionValue)] {
            try require(
                writer.metadata[key] ?? value == value, .invalidArgument, "metadata \(quoted(key))",
                expected: "absent or \(quoted(value))", actual: quoted(writer.metadata[key] ?? ""))
        }
        // A copy, so that a name that is taken leaves the file unchanged.
        var result = writer
        func add(
            _ name: String, _ tensor: Tensor<Float>?, as types: [ElementType] = [.float16, .bfloat16]
        ) throws(SparseKernelsError) {
            if let tensor { try result.addExact(Name.of(name, in: prefix), tensor, as: types) }
        }
        try result.add(Name.of(Name.codes, in: prefix), weight.codes)
        try add(Name.scales, weight.scales, as: weight.format.code == .fp4 ? [.float8E4M3] : [.float16, .bfloat16])
        try add(Name.offsets, weight.offsets)
        try add(Name.channelScales, weight.channelScales)
        try add(Name.smooth, smooth)
        try add(Name.down, lowRank?.down)
        try add(Name.up, lowRank?.up)
        try add(Name.bias, bias)

        result.metadata[Name.format] = Name.formatValue
        result.metadata[Name.version] = Name.versionValue
        for (key, value) in metadata { result.metadata[Name.of(key, in: prefix)] = value }
        writer = result
    }

    private var metadata: [String: String] {
        var tensors = [Name.codes, Name.scales]
        if weight.offsets != nil { tensors.append(Name.offsets) }
        if weight.channelScales != nil { tensors.append(Name.channelScales) }
        if smooth != nil { tensors.append(Name.smooth) }
        if lowRank != nil { tensors += [Name.down, Name.up] }
        if bias != nil { tensors.append(Name.bias) }
        var metadata = [
            Name.code: weight.format.code.rawValue,
            Name.groupSize: weight.format.groupSize.map(String.init) ?? Name.wholeRow,
            Name.outFeatures: "\(outFeatures)", Name.inFeatures: "\(inFeatures)", Name.rank: "\(rank)",
            Name.activation: activation.fileName, Name.epilogue: epilogue.fileName,
            Name.tensors: tensors.sorted().joined(separator: " "),
        ]
        if case .uint4(let shift) = activation { metadata[Name.shift] = "\(shift)" }
        return metadata
    }

    // MARK: - Reading

    /// The sorted names of the layers in a file. A layer without a name has the empty one.
    /// - Throws: `.notFound` or `.malformedFile` when the file is of another format or version.
    public static func layers(in file: SafetensorsFile) throws(SparseKernelsError) -> [String] {
        for (key, value) in [(Name.format, Name.formatValue), (Name.version, Name.versionValue)] {
            let text = try file.text(key)
            try file.requireMetadata(text == value, key, expected: quoted(value), actual: quoted(text))
        }
        return file.metadata.keys.compactMap { key in
            if key == Name.tensors { return "" }
            return key.hasSuffix("." + Name.tensors) ? String(key.dropLast(Name.tensors.count + 1)) : nil
        }.sorted()
    }

    /// Reads a layer of the file at `path`, written by `write`.
    ///
    /// - Parameters:
    ///   - path: path of the file.
    ///   - prefix: the layer's name in the file.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    /// - Throws: `.inputOutput` when the file cannot be read, otherwise as `init(file:prefix:instructionSet:)`.
    public init(path: String, prefix: String = "", instructionSet: InstructionSet? = nil) throws(SparseKernelsError) {
        try self.init(file: SafetensorsFile(path: path), prefix: prefix, instructionSet: instructionSet)
    }

    /// Reads a layer of a file that may have other layers and tensors.
    ///
    /// - Parameters:
    ///   - file: the file. Its data are copied, so it need not stay open.
    ///   - prefix: the layer's name in the file.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    /// - Throws: `.malformedFile` when the file is of another format or version, or its contents are not a layer; `.notFound`
    ///   for a missing layer, tensor or metadata entry; `.invalidElementType` for a tensor of another type;
    ///   `.unsupportedInstructionSet`. Messages name the file, the tensor, and the expected and actual values.
    /// - Complexity: proportional to the size of the layer's tensors, whatever the metadata state.
    public init(file: SafetensorsFile, prefix: String = "", instructionSet: InstructionSet? = nil)
        throws(SparseKernelsError)
    {
        let layers = try Self.layers(in: file)
        try require(
            layers.contains(prefix), .notFound, "\(file.name), layer \(quoted(prefix))",
            expected: "one of its \(layers.count) layers" + (layers.first.map { ", such as \(quoted($0))" } ?? ""),
            actual: "no layer of that name")
        let reader = LayerReader(file: file, layer: prefix)
        let format = try reader.weightFormat()
        let (outFeatures, inFeatures) = (try reader.extent(Name.outFeatures), try reader.extent(Name.inFeatures))
        let rank = try reader.extent(Name.rank, orNone: true)
        let (activation, epilogue) = (try reader.activation(), try reader.epilogue())
        let names = try reader.tensorNames(hasBranch: rank > 0)
        let groups = [outFeatures, format.groups(inFeatures: inFeatures)]
        let codes = [outFeatures, format.paddedInFeatures(inFeatures) * format.code.bits / 8]

        func floats(_ name: String, _ shape: [Int]) throws(SparseKernelsError) -> Tensor<Float>? {
            names.contains(name) ? try reader.floats(name, shape) : nil
        }
        let parts = (
            scales: try reader.floats(Name.scales, groups), offsets: try floats(Name.offsets, groups),
            channelScales: try floats(Name.channelScales, [outFeatures]), smooth: try floats(Name.smooth, [inFeatures]),
            down: try floats(Name.down, [rank, inFeatures]), up: try floats(Name.up, [outFeatures, rank]),
            bias: try floats(Name.bias, [outFeatures]), codes: try reader.bytes(Name.codes, codes)
        )
        do throws(SparseKernelsError) {
            let branch: LowRankBranch? =
                if let down = parts.down, let up = parts.up { try LowRankBranch(down: down, up: up) } else { nil }
            try self.init(
                weight: QuantizedWeight(
                    format: format, inFeatures: inFeatures, codes: parts.codes, scales: parts.scales, offsets: parts.offsets,
                    channelScales: parts.channelScales),
                smooth: parts.smooth, lowRank: branch, bias: parts.bias, activation: activation, epilogue: epilogue,
                instructionSet: instructionSet)
        } catch {
            if error.code == .unsupportedInstructionSet { throw error }
            throw SparseKernelsError(
                .malformedFile, "\(file.name), \(quoted(Name.of(error.argument, in: prefix)))",
                expected: error.expected, actual: error.actual)
        }
    }

    /// The tensors and metadata of one layer.
    private struct LayerReader {
        let file: SafetensorsFile
        let layer: String

        func weightFormat() throws(SparseKernelsError) -> WeightFormat {
            let code: WeightFormat.Code = try choice(Name.code, WeightFormat.Code.allCases, \.rawValue)
            let sizes = WeightFormat.groupSizes.map(Optional.some) + [nil]
            let groupSize = try choice(Name.groupSize, sizes) { $0.map(String.init) ?? Name.wholeRow }
            return try WeightFormat(code, groupSize: groupSize)
        }

        func activation() throws(SparseKernelsError) -> ActivationFormat {
            let activation = try choice(Name.activation, ActivationFormat.inFiles, \.fileName)
            guard case .uint4 = activation else { return activation }
            let key = Name.of(Name.shift, in: layer)
            let text = try file.text(key)
            let shift = Float(text)
            try file.requireMetadata(
                shift.map { $0.isFinite && $0 >= 0 && "\($0)" == text } ?? false, key,
                expected: "a decimal number of 0 or more, in the shortest form", actual: quoted(text))
            return .uint4(shift: shift!)
        }

        func epilogue() throws(SparseKernelsError) -> Epilogue {
            try choice(Name.epilogue, Epilogue.inFiles, \.fileName)
        }

        /// A count of at least 1, or 0 if allowed, below 2³¹, so that no sum or product of two counts overflows.
        func extent(_ name: String, orNone: Bool = false) throws(SparseKernelsError) -> Int {
            let key = Name.of(name, in: layer)
            let value = try file.integer(key)
            try file.requireMetadata(
                value >= (orNone ? 0 : 1) && value < 1 << 31, key, expected: "\(orNone ? 0 : 1) to 2³¹ − 1", actual: "\(value)")
            return value
        }

        /// The tensors that the layer has according to its metadata.
        func tensorNames(hasBranch: Bool) throws(SparseKernelsError) -> Set<String> {
            let key = Name.of(Name.tensors, in: layer)
            let text = try file.text(key)
            let listed = text.split(separator: " ", omittingEmptySubsequences: false).map(String.init)
            let names = Set(listed)
            try file.requireMetadata(
                names.isSubset(of: Name.allTensors) && names.count == listed.count, key,
                expected: "some of \(Name.allTensors.joined(separator: " ")), each once", actual: quoted(text))
            var needed: Set = [Name.codes, Name.scales]
            if hasBranch { needed.formUnion([Name.down, Name.up]) }
            let branch = names.intersection([Name.down, Name.up])
            try file.requireMetadata(
                needed.isSubset(of: names) && (hasBranch || branch.isEmpty), key,
                expected: "a list with \(needed.sorted().joined(separator: " "))"
                    + (hasBranch ? "" : ", and without down and up, the rank being 0"),
                actual: quoted(text))
            return names
        }

        func bytes(_ name: String, _ shape: [Int]) throws(SparseKernelsError) -> Tensor<UInt8> {
            let key = Name.of(name, in: layer)
            try requireShape(key, shape)
            return try file.tensor(key, as: UInt8.self)
        }

        func floats(_ name: String, _ shape: [Int]) throws(SparseKernelsError) -> Tensor<Float> {
            let key = Name.of(name, in: layer)
            try requireShape(key, shape)
            return try file.storedFloats(key)
        }

        private func requireShape(_ key: String, _ shape: [Int]) throws(SparseKernelsError) {
            let stored = try file.entry(named: key).shape
            try file.requireTensor(
                stored == shape, key, expected: "\(shape), as the metadata say", actual: abbreviated(stored))
        }

        private func choice<Value>(
            _ name: String, _ values: [Value], _ text: (Value) -> String
        ) throws(SparseKernelsError) -> Value {
            let key = Name.of(name, in: layer)
            let found = try file.text(key)
            if let value = values.first(where: { text($0) == found }) { return value }
            throw SparseKernelsError(
                .malformedFile, "\(file.name), metadata \(quoted(key))",
                expected: "one of \(values.map(text).joined(separator: ", "))", actual: quoted(found))
        }
    }
}

extension ActivationFormat {
    fileprivate static let inFiles: [ActivationFormat] = [
        .float, .int8PerToken, .int8PerGroup, .int4, .uint4(shift: 0), .fp4,
    ]

    fileprivate var fileName: String {
        switch self {
        case .float: "float"
        case .int8PerToken: "int8PerToken"
        case .int8PerGroup: "int8PerGroup"
        case .int4: "int4"
        case .uint4: "uint4"
        case .fp4: "fp4"
        }
    }
}

extension Epilogue {
    fileprivate static let inFiles: [Epilogue] = [.none, .gelu, .silu, .geluErf]

    fileprivate var fileName: String {
        switch self {
        case .none: "none"
        case .gelu: "gelu"
        case .silu: "silu"
        case .geluErf: "gelu_erf"
        }
    }
}
