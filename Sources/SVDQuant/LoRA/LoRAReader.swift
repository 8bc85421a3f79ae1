internal import SparseKernels

/// The tensors of one layer in an adapter's file.
struct LoRAReader {
    let file: SafetensorsFile
    /// The layer's name in the file.
    let layer: String
    let pair: LoRANames.Pair
    /// The name of the tensor with alpha; nil without one.
    let alphaName: String?
    var biasDifferenceName: String { "\(layer).diff_b" }

    /// Finds the factors, and throws for other tensors of the layer that cannot be read.
    init(file: SafetensorsFile, layer: String) throws(SparseKernelsError) {
        self.file = file
        var name = layer
        var found = Self.pairs(ofLayer: layer, in: file)
        if found.isEmpty && Self.firstForeign(ofLayer: layer, in: file) == nil {
            let others = LoRANames.spellings(ofLayer: layer).filter {
                !Self.pairs(ofLayer: $0, in: file).isEmpty || Self.firstForeign(ofLayer: $0, in: file) != nil
            }
            if let other = others.first {
                try require(
                    others.count == 1, .notFound, "\(file.name), layer \(quoted(layer))",
                    expected: "one of \(others.map { quoted($0) }.joined(separator: ", "))", actual: "a name that fits several")
                name = other
                found = Self.pairs(ofLayer: other, in: file)
            }
        }
        self.layer = name
        // This comes first, because a file without a pair may have the layer in another form.
        if let foreign = Self.firstForeign(ofLayer: name, in: file, beside: found) {
            throw SparseKernelsError(
                .malformedFile, "\(file.name), tensor \(quoted(foreign.name))",
                expected: "absent: it changes the layer, and not as a pair of low-rank factors",
                actual: "\(foreign.elementType.rawValue) \(abbreviated(foreign.shape))")
        }
        guard let pair = found.first else {
            let known = LoRAAdapter.layers(in: file)
            throw SparseKernelsError(
                .notFound, "\(file.name), layer \(quoted(layer))",
                expected: known.isEmpty
                    ? "one with lora_A and lora_B, or lora_down and lora_up; the file has none"
                    : "one of its \(known.count) layers with factors, such as \(quoted(known[0]))",
                actual: "no factors of that name")
        }
        try file.requireTensor(
            found.count == 1, pair.down, expected: "the layer's only factor of its kind",
            actual: "also \(quoted(found.last?.down ?? ""))")
        self.pair = pair
        let alphaNames = [
            "\(name).alpha", "\(name).lora_alpha", "\(name).lora.alpha", "\(name).lora_linear_layer.alpha",
            "\(pair.stem).alpha",
        ]
        alphaName = alphaNames.first { file[$0] != nil }
        for factor in [pair.down, pair.up] { _ = try file.entry(named: factor) }
    }

    // MARK: - Finding

    /// The pairs of which the file has at least one part.
    private static func pairs(ofLayer layer: String, in file: SafetensorsFile) -> [LoRANames.Pair] {
        var pairs = LoRANames.pairs(ofLayer: layer).filter { file[$0.down] != nil || file[$0.up] != nil }
        for entry in file.tensors where entry.name.utf8.starts(with: layer.utf8) {
            guard let pair = LoRANames.namedPair(entry.name, ofLayer: layer) else { continue }
            if !pairs.contains(where: { $0.down == pair.down }) { pairs.append(pair) }
        }
        return pairs
    }

    /// A tensor of the layer that is neither part of the pairs nor a number beside them.
    ///
    /// A layer's own weight and bias occur together in files with a model and its adapter; a bias alone was trained.
    private static func firstForeign(
        ofLayer layer: String, in file: SafetensorsFile, beside pairs: [LoRANames.Pair] = []
    ) -> SafetensorsEntry? {
        let known = Set(pairs.flatMap { [$0.down, $0.up, $0.bias, "\($0.stem).alpha"] })
        let stems = Set([layer] + pairs.map(\.stem))
        for entry in file.tensors {
            for stem in stems where entry.name.utf8.starts(with: stem.utf8) {
                let rest = entry.name.dropFirst(stem.count)
                guard rest.first == ".", !known.contains(entry.name) else { continue }
                switch rest.dropFirst() {
                case "alpha", "lora_alpha", "lora.alpha", "lora_linear_layer.alpha", "diff_b", "weight": continue
                case "bias": if file["\(stem).weight"] != nil { continue }
                case let rest where rest.hasPrefix("base_layer."):
                    if file["\(stem).base_layer.weight"] != nil { continue }
                case let rest:
                    if !LoRANames.isOfLayer(rest) { continue }
                    // Without any pair, a name is foreign only if it belongs to an adapter.
                    if pairs.isEmpty && LoRANames.layer(ofFactor: entry.name) != nil { continue }
                }
                return entry
            }
        }
        return nil
    }

    // MARK: - Reading

    /// A factor as a matrix.
    func factor(_ name: String) throws(SparseKernelsError) -> Tensor<Float> {
        let shape = try file.entry(named: name).shape
        try file.requireTensor(
            shape.count >= 2 && shape.count <= 5 && shape.dropFirst(2).allSatisfy { $0 == 1 }, name,
            expected: "a matrix, or the kernel of a 1 × 1 convolution", actual: abbreviated(shape))
        let values = try floats(name)
        return shape.count == 2 ? values : try Tensor(Array(shape.prefix(2)), values.elements)
    }

    /// A tensor of floating-point numbers of any type.
    func floats(_ name: String) throws(SparseKernelsError) -> Tensor<Float> {
        let entry = try file.entry(named: name)
        switch entry.elementType {
        case .float64, .float8E4M3, .float8E5M2: break
        // The error of this call names the usual types.
        default: return try file.floatTensor(name)
        }
        let bytes = try file.bytes(name)
        return try Tensor(entry.shape) { Float(Self.number(bytes, at: $0, entry.elementType) ?? .nan) }
    }

    /// The factor on the product of the factors.
    func scale(
        rank: Int, alpha: Float?, configuration: LoRAConfiguration?
    ) throws(SparseKernelsError) -> Float {
        if let alphaName {
            let entry = try file.entry(named: alphaName)
            try file.requireTensor(entry.count == 1, alphaName, expected: "one number", actual: abbreviated(entry.shape))
            let isHalf = entry.elementType == .float16 || entry.elementType == .bfloat16
            let number =
                isHalf
                ? Double(try file.floatTensor(alphaName)[flat: 0])
                : Self.number(try file.bytes(alphaName), at: 0, entry.elementType)
            guard let value = number else {
                throw SparseKernelsError(
                    .invalidElementType, "\(file.name), tensor \(quoted(alphaName))", expected: "of a type of numbers",
                    actual: entry.elementType.rawValue)
            }
            try file.requireTensor(value.isFinite, alphaName, expected: "finite", actual: "\(value)")
            return Float(value / Double(rank))
        }
        let module = LoRANames.bare(layer)
        if let stated = try LoRAConfiguration.inMetadata(of: file, layer: layer)?.scale(ofLayer: module, rank: rank) {
            return stated
        }
        if let given = try configuration?.scale(ofLayer: module, rank: rank) { return given }
        if let alpha {
            try require(alpha.isFinite, .invalidArgument, "alpha", expected: "finite", actual: "\(alpha)")
            return alpha / Float(rank)
        }
        if configuration != nil { return 1 }
        return try LoRAConfiguration.beside(file)?.scale(ofLayer: module, rank: rank) ?? 1
    }

    /// The addition to the layer's bias; nil for none.
    func biasDifference() throws(SparseKernelsError) -> Tensor<Float>? {
        file[biasDifferenceName] == nil ? nil : try floats(biasDifferenceName)
    }

    /// An element of a numeric tensor other than 16-bit floats; nil for other types.
    private static func number(_ bytes: RawSpan, at index: Int, _ type: ElementType) -> Double? {
        bytes.withUnsafeBytes { bytes in
            func load<Value: BitwiseCopyable>(_ type: Value.Type) -> Value {
                bytes.loadUnaligned(fromByteOffset: index * MemoryLayout<Value>.size, as: Value.self)
            }
            switch type {
            case .float64: return load(Double.self)
            case .float32: return Double(load(Float.self))
            case .float8E4M3: return Double(E4M3(bitPattern: load(UInt8.self)).floatValue)
            case .float8E5M2: return valueOfE5M2(load(UInt8.self))
            case .int64: return Double(load(Int64.self))
            case .int32: return Double(load(Int32.self))
            case .int16: return Double(load(Int16.self))
            case .int8: return Double(load(Int8.self))
            case .uint64: return Double(load(UInt64.self))
            case .uint32: return Double(load(UInt32.self))
            case .uint16: return Double(load(UInt16.self))
            case .uint8: return Double(load(UInt8.self))
            default: return nil
            }
        }
    }

    /// The value of a sign bit, five bits of exponent with bias 15 and two of mantissa, with infinities and NaN as in IEEE 754.
    private static func valueOfE5M2(_ bits: UInt8) -> Double {
        let (exponent, mantissa) = (Int(bits >> 2 & 31), Double(bits & 3))
        let magnitude: Double =
            switch exponent {
            case 31: mantissa == 0 ? .infinity : .nan
            case 0: mantissa * 0x1p-16
            default: Double(sign: .plus, exponent: exponent - 15, significand: 1 + mantissa / 4)
            }
        return bits & 0x80 == 0 ? magnitude : -magnitude
    }
}
