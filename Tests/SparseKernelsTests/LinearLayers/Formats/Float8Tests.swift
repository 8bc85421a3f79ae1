import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// 8-bit floats by the definition of their formats: values of codes in `Double`, and a search over all of them.
@Suite("8-bit floats")
struct Float8Tests {
    /// What a code stands for: sign, exponent and mantissa as the format has them. Infinite and NaN where it says so.
    static func value<Code: Float8>(_ bits: UInt8, of type: Code.Type) -> Double {
        let isE4M3 = Code.elementType == .float8E4M3
        let (mantissaBits, bias) = isE4M3 ? (3, 7) : (2, 15)
        let exponent = Int(bits & 0x7f) >> mantissaBits
        let mantissa = Double(Int(bits) & (1 << mantissaBits - 1))
        let sign: Double = bits & 0x80 == 0 ? 1 : -1
        if isE4M3 && bits & 0x7f == 0x7f { return .nan }
        if !isE4M3 && exponent == 31 { return mantissa == 0 ? sign * .infinity : .nan }
        let unit = Double(sign: .plus, exponent: max(exponent, 1) - bias - mantissaBits, significand: 1)
        return sign * unit * (exponent == 0 ? mantissa : mantissa + Double(1 << mantissaBits))
    }

    /// The values of the codes that are not negative.
    private static let e4m3 = (UInt8(0)..<0x80).map { value($0, of: E4M3.self) }
    private static let e5m2 = (UInt8(0)..<0x80).map { value($0, of: E5M2.self) }

    /// The code that a search over all finite values finds: nearest, ties to the even code, saturating.
    static func search<Code: Float8>(_ x: Double, of type: Code.Type) -> UInt8 {
        if x.isNaN { return 0x7f }
        let values = Code.elementType == .float8E4M3 ? e4m3[...0x7e] : e5m2[...0x7b]
        let magnitude = abs(x)
        var (best, least) = (0, magnitude)
        for (code, value) in values.enumerated() {
            let distance = abs(magnitude - value)
            if distance < least || distance == least && code % 2 == 0 { (best, least) = (code, distance) }
        }
        if magnitude >= values.last! { best = values.count - 1 }
        return UInt8(best) | (x.sign == .minus ? 0x80 : 0)
    }

    /// Every value, every midpoint, their neighbours, and what is special.
    static func points<Code: Float8>(_ type: Code.Type) -> [Float] {
        let values = (UInt8(0)..<0x7f).map { Float(value($0, of: type)) }.filter(\.isFinite)
        let midpoints = zip(values, values.dropFirst()).map { ($0 + $1) / 2 }
        let all = (values + midpoints).flatMap { [$0, $0.nextUp, $0.nextDown] }
        return (all + all.map { -$0 }) + [
            .infinity, -.infinity, .nan, 0, -0.0, .leastNonzeroMagnitude, 0x1p-140, 464, 480, 61_440, 65_536, 1e30, -3e38,
        ]
    }

    static func check<Code: Float8>(_ type: Code.Type, _ set: InstructionSet) throws {
        let points = points(type)
        let conversion = try Float8Conversion(instructionSet: set)
        let x = try Tensor<Float>([1, points.count], points)
        var codes = try Tensor<Code>(zeros: [1, points.count])
        try conversion.quantize(x.matrixView(), scale: 1, into: codes.mutableMatrixView())
        for (index, point) in points.enumerated() {
            let bits = codes[flat: index].bitPattern
            let expected = search(Double(point), of: type)
            #expect(point.isNaN ? bits & 0x7f == 0x7f : bits == expected, "\(set), \(Code.name) of \(point)")
            #expect(Code(point).bitPattern == bits, "the scalar cast of \(point)")
        }
        // All codes, also in the rest of a row that fills no vector.
        for count in [256, 1, 3, 17, 250] {
            let all = try Tensor<Code>([1, count]) { Code(bitPattern: UInt8($0 * 255 / max(1, count - 1))) }
            var y = try Tensor<Float>(zeros: [1, count])
            try conversion.dequantize(all.matrixView(), scale: 0.5, into: y.mutableMatrixView())
            for index in 0..<count {
                let expected = value(all[flat: index].bitPattern, of: type) * 2
                #expect(
                    expected.isNaN ? y[flat: index].isNaN : Double(y[flat: index]) == expected,
                    "\(set), \(Code.name) code \(all[flat: index].bitPattern)")
                let alone = all[flat: index].floatValue
                #expect(alone.isNaN == expected.isNaN && (alone.isNaN || Double(alone) * 2 == expected))
            }
        }
    }

    @Test("every code, every tie and its neighbours, on every level", arguments: InstructionSet.available)
    func exhaustive(_ set: InstructionSet) throws {
        try Self.check(E4M3.self, set)
        try Self.check(E5M2.self, set)
    }

    @Test("scales follow the rules of current scaling")
    func scaling() throws {
        let current = Float8Scaling.current
        for amax: Float in [0, .infinity, .nan] {
            #expect(current.scale(amax: amax, for: E4M3.self) == 1 && current.scale(amax: amax, for: E5M2.self) == 1)
        }
        #expect(current.scale(amax: 3, for: E4M3.self) == 448 / Float(3))
        #expect(current.scale(amax: 3, for: E5M2.self) == 57_344 / Float(3))
        #expect(current.scale(amax: 0x1p-140, for: E4M3.self) == .greatestFiniteMagnitude)
        let powers = try Float8Scaling(usesPowersOfTwo: true)
        #expect(powers.scale(amax: 3, for: E4M3.self) == 128 && powers.scale(amax: 448, for: E4M3.self) == 1)
        #expect(powers.scale(amax: 449, for: E4M3.self) == 0.5 && powers.scale(amax: 0, for: E4M3.self) == 1)
        #expect(powers.scale(amax: 0x1p-140, for: E4M3.self) == 0x1p127)
        let floor = try Float8Scaling(leastAmax: 2)
        #expect(floor.scale(amax: 1, for: E4M3.self) == 224 && floor.scale(amax: 0, for: E4M3.self) == 224)
        #expect(floor.scale(amax: 4, for: E4M3.self) == 112)
        expectError(.invalidArgument, "leastAmax", containing: "-1") { _ = try Float8Scaling(leastAmax: -1) }
        expectError(.invalidArgument, "leastAmax", containing: "nan") { _ = try Float8Scaling(leastAmax: .nan) }
    }

    @Test(
        "matrices of any type and stride are cast with the scale of their largest element", arguments: InstructionSet.available)
    func matrices(_ set: InstructionSet) throws {
        func check<X: AttentionElement, Code: Float8>(_ type: X.Type, _ code: Code.Type, columns: Int) throws {
            let wide = try Tensor<X>.normal([60, columns + 5], seed: 3)
            let conversion = try Float8Conversion(instructionSet: set)
            var codes: [Tensor<Code>] = []
            var amax: Float = 0
            for row in 0..<60 { for column in 0..<columns { amax = max(amax, abs(wide[row, column].floatValue)) } }
            for threads in [1, 2, 7] {
                let pool = WorkerPool(threads: threads)
                var y = try Tensor<Code>([60, columns + 2]) { _ in Code(7) }
                let view = try MatrixView(wide.span, rows: 60, columns: columns, rowStride: columns + 5)
                let scale = try conversion.quantize(
                    view, into: MutableMatrixView(y.mutableSpan, rows: 60, columns: columns, rowStride: columns + 2), on: pool)
                #expect(scale == Code.greatestFiniteMagnitude / amax)
                codes.append(y)
                var back = try Tensor<X>(zeros: [60, columns])
                try conversion.dequantize(
                    MatrixView(y.span, rows: 60, columns: columns, rowStride: columns + 2), scale: scale,
                    into: back.mutableMatrixView(), on: pool)
                let isRight = (0..<60).allSatisfy { row in
                    (0..<columns).allSatisfy { column in
                        let code = y[row, column]
                        return code.bitPattern == Code(wide[row, column].floatValue * scale).bitPattern
                            && back[row, column].floatValue == X(code.floatValue * (1 / scale)).floatValue
                    } && (columns..<columns + 2).allSatisfy { y[row, $0].floatValue == 7 }
                }
                #expect(isRight, "\(set), \(X.self), \(Code.name), \(columns) columns")
            }
            #expect(codes.allSatisfy { $0.elements.map(\.bitPattern) == codes[0].elements.map(\.bitPattern) })
        }
        try check(Float.self, E4M3.self, columns: 35)
        try check(Float16.self, E5M2.self, columns: 7)
        try check(BFloat16.self, E4M3.self, columns: 16)
    }

    @Test("tensors of any shape, with nothing in them, or with what is not finite")
    func tensors() throws {
        for shape in [[], [5], [0], [3, 0], [2, 3, 4]] {
            let x = try Tensor<Float>.normal(shape, seed: 1)
            let small = try Float8Tensor<E4M3>(x)
            #expect(small.codes.shape == shape)
            let back = try small.dequantized()
            #expect(zip(x.elements, back.elements).allSatisfy { abs($0 - $1) <= abs($0) / 16 + 1 / small.scale * 0x1p-10 })
        }
        let odd = try Float8Tensor<E5M2>(Tensor<Float>([4], [1, .nan, .infinity, -2]))
        #expect(odd.scale == 1 && odd.codes[flat: 1].floatValue.isNaN && odd.codes[flat: 2].floatValue == 57_344)
        expectError(.invalidArgument, "scale", containing: "above 0") {
            _ = try Float8Tensor(codes: Tensor<E4M3>(zeros: [1]), scale: 0)
        }
        let conversion = try Float8Conversion()
        let x = try Tensor<Float>(zeros: [2, 3])
        var codes = try Tensor<E4M3>(zeros: [3, 2])
        expectError(.invalidShape, "codes", containing: "2 × 3", "3 × 2") {
            try conversion.quantize(x.matrixView(), into: codes.mutableMatrixView())
        }
        expectError(.invalidArgument, "scale", containing: "inf") {
            var codes = try Tensor<E4M3>(zeros: [2, 3])
            try conversion.quantize(x.matrixView(), scale: .infinity, into: codes.mutableMatrixView())
        }
        // Views of temporaries crash the compiler (Swift 6.3.1).
        let (plain, spoilt) = (try Tensor<Float>([1, 3], [-5, 2, 1]), try Tensor<Float>([1, 2], [.infinity, .nan]))
        let amax = (try conversion.amax(plain.matrixView()), try conversion.amax(spoilt.matrixView()))
        #expect(amax.0 == 5 && amax.1.isNaN)
    }

    @Test("files hold both formats")
    func files() throws {
        var writer = SafetensorsWriter()
        let (a, b) = (
            try Tensor<E4M3>([256]) { E4M3(bitPattern: UInt8($0)) }, try Tensor<E5M2>([16, 16]) { E5M2(bitPattern: UInt8($0)) }
        )
        try writer.add("a", a)
        try writer.add("b", b)
        let file = try SafetensorsFile(bytes: writer.encoded())
        #expect(file["a"]?.elementType.rawValue == "F8_E4M3" && file["b"]?.elementType.rawValue == "F8_E5M2")
        #expect(try file.tensor("a", as: E4M3.self) == a && file.tensor("b", as: E5M2.self) == b)
    }
}

/// Layers whose weights are 8-bit floats.
@Suite("Linear layer of 8-bit floats")
struct Float8LinearTests {
    static func check<Code: Float8, X: AttentionElement>(
        _ type: Code.Type, _ x: X.Type, _ set: InstructionSet, _ m: Int, _ n: Int, _ k: Int, hasBias: Bool
    ) throws {
        let input = try Tensor<X>.normal([m, k], seed: 1)
        let weight = try Float8Tensor<Code>(Tensor<Float>.normal([n, k], seed: 2), instructionSet: set)
        let bias = hasBias ? try Tensor<Float>.normal([n], seed: 3) : nil
        let layer = try FloatLinear(weight: weight, bias: bias, instructionSet: set)
        let y = try layer(input, on: .serial)
        for threads in [2, 7] { #expect(try layer(input, on: WorkerPool(threads: threads)).bits == y.bits) }
        let values = weight.codes.elements.map { Double($0.floatValue) / Double(weight.scale) }
        let rows = input.elements.map { Double($0.floatValue) }
        var worst = 0.0
        for row in 0..<m {
            for column in 0..<n {
                var (sum, magnitude) = (0.0, 0.0)
                for i in 0..<k {
                    let term = rows[row * k + i] * values[column * k + i]
                    (sum, magnitude) = (sum + term, magnitude + abs(term))
                }
                if let bias {
                    sum += Double(bias[flat: column])
                    magnitude += abs(Double(bias[flat: column]))
                }
                // The bound of a sum of K products in any order, and the roundings of 1 / scale and of the product with it.
                let bound = (Double(k) / 4 + 10) * 0x1p-24 * magnitude
                worst = max(worst, abs(Double(y[row, column]) - sum) / bound)
            }
        }
        #expect(worst <= 1, "\(set), \(Code.name), \(m)×\(n)×\(k): \(worst) of the bound")
    }

    @Test("agrees with Double at all shapes", arguments: InstructionSet.available)
    func shapes(_ set: InstructionSet) throws {
        for (index, (m, n, k)) in [
            (1, 1, 1), (1, 17, 5), (1, 100, 213), (2, 33, 130), (3, 15, 64), (5, 16, 129), (7, 49, 1), (65, 31, 60),
        ].enumerated() {
            try Self.check(E4M3.self, Float.self, set, m, n, k, hasBias: index % 2 == 0)
            try Self.check(E5M2.self, Float16.self, set, m, n, k, hasBias: index % 2 == 1)
        }
    }

    @Test("all codes are the numbers that they stand for, subnormal ones too", arguments: InstructionSet.available)
    func codes(_ set: InstructionSet) throws {
        func check<Code: Float8>(_ type: Code.Type) throws {
            let finite = (0...UInt8.max).map { Code(bitPattern: $0) }.filter(\.floatValue.isFinite)
            let weight = try Float8Tensor(codes: Tensor<Code>([finite.count, 1], finite), scale: 0.25)
            for rows in [1, 5] {
                let y = try FloatLinear(weight: weight, instructionSet: set)(Tensor<Float>([rows, 1]) { _ in 1 })
                for row in 0..<rows {
                    #expect(finite.indices.allSatisfy { y[row, $0] == finite[$0].floatValue * 4 }, "\(set), \(Code.name)")
                }
            }
        }
        try check(E4M3.self)
        try check(E5M2.self)
    }

    @Test("several weights side by side keep their scales", arguments: InstructionSet.available)
    func stacked(_ set: InstructionSet) throws {
        let parts = try [(24, 1, 1), (5, 2, 100), (40, 3, 0.01)].map {
            try Float8Tensor<E4M3>(Tensor<Float>.normal([$0.0, 70], seed: $0.1, scale: $0.2))
        }
        let all = try FloatLinear(weights: parts, instructionSet: set)
        for m in [1, 6] {
            let x = try Tensor<Float>.normal([m, 70], seed: 9)
            let y = try all(x)
            var first = 0
            for part in parts {
                let alone = try FloatLinear(weight: part, instructionSet: set)(x)
                let rows = part.codes.shape[0]
                for row in 0..<m {
                    #expect((0..<rows).allSatisfy { y[row, first + $0] == alone[row, $0] })
                }
                first += rows
            }
        }
        #expect(all.byteCount < 70 * 96 + 96 * 8)
    }

    @Test("weights that are not finite, and scales out of range, are errors")
    func errors() throws {
        expectError(.invalidArgument, "weight", containing: "finite", "element 1") {
            _ = try FloatLinear(weight: Float8Tensor(codes: Tensor<E4M3>([1, 2], [.zero, E4M3(.nan)]), scale: 1))
        }
        expectError(.invalidArgument, "weight", containing: "element 0") {
            _ = try FloatLinear(weight: Float8Tensor(codes: Tensor<E5M2>([1, 1], [E5M2(bitPattern: 0x7c)]), scale: 1))
        }
        expectError(.invalidArgument, "weight.scale") {
            _ = try FloatLinear(weight: Float8Tensor(codes: Tensor<E4M3>(zeros: [1, 1]), scale: 1e-38))
        }
        expectError(.invalidShape, "weight") {
            _ = try FloatLinear(weight: Float8Tensor(codes: Tensor<E4M3>(zeros: [4]), scale: 1))
        }
    }
}
