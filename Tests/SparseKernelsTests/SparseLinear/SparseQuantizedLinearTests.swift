import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Quantised layers of which whole blocks of the packed weight take part.
@Suite("Sparse quantised linear layer")
struct SparseQuantizedLinearTests {
    struct Form: Sendable, CustomTestStringConvertible {
        var name: String
        var format: WeightFormat
        var activation: ActivationFormat
        var testDescription: String { name }
    }

    static let forms: [Form] = [
        Form(name: "W4A16", format: try! WeightFormat(.uint4, groupSize: 32), activation: .float),
        Form(name: "W4A16 symmetric", format: .svdQuantInt4, activation: .float),
        Form(name: "W4A8", format: .svdQuantInt4, activation: .int8PerToken),
        Form(name: "W4A8 with offsets", format: try! WeightFormat(.uint4, groupSize: 128), activation: .int8PerGroup),
        Form(name: "W8A8", format: .int8PerChannel, activation: .int8PerToken),
        Form(name: "W8A16", format: .int8PerChannel, activation: .float),
        Form(name: "NVFP4", format: .nvfp4, activation: .fp4),
    ]

    private func weight(_ form: Form, _ rows: Int, _ columns: Int) throws -> QuantizedWeight {
        try WeightQuantizer(form.format)(.normal([rows, columns], seed: 3, scale: 0.1))
    }

    /// Operands of its own, since views of temporaries in a throwing call crash Swift 6.3.1.
    private func run(
        _ layer: SparseQuantizedLinear, _ x: Tensor<Float>, _ channels: ChannelSubset, into y: inout Tensor<Float>,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try layer.run(x: x.matrixView(), channels: channels, y: y.mutableMatrixView(), on: pool)
    }

    @Test("picked outputs have the bits of those columns of the whole layer", arguments: InstructionSet.available, forms)
    func outputs(_ set: InstructionSet, _ form: Form) throws {
        let (features, depth) = (150, 160)
        let bias = try Tensor<Float>.normal([features], seed: 5)
        let layer = try QuantizedLinear(
            PackedWeight(weight(form, features, depth), instructionSet: set), activation: form.activation,
            smooth: Tensor([depth]) { 1 + Float($0 % 3) }, bias: bias, epilogue: .silu)
        let sparse = try SparseQuantizedLinear(layer, picking: .outputs)
        #expect([8, 16, 32].contains(sparse.blockSize) && sparse.channels == features)
        for rows in [1, 5, 20] {
            let x = try Tensor<Float>.normal([rows, depth], seed: 7)
            let whole = try layer(x)
            for list in [
                [], [0], [sparse.blocks - 1], Array(stride(from: 1, to: sparse.blocks, by: 2)), Array(0..<sparse.blocks),
            ] {
                let subset = try sparse.channels(ofBlocks: ChannelSubset(list.map { Int32($0) }, of: sparse.blocks))
                #expect(try sparse.blocks(of: subset).indices == list.map { Int32($0) })
                for threads in [1, 3] {
                    var y = try Tensor<Float>([rows, subset.count]) { _ in .nan }
                    try run(sparse, x, subset, into: &y, on: WorkerPool(threads: threads))
                    let isEqual = (0..<y.count).allSatisfy {
                        let (row, place) = ($0 / subset.count, $0 % subset.count)
                        return y[flat: $0] == whole[flat: row * features + Int(subset.indices[place])]
                    }
                    #expect(isEqual, "\(set), \(form.name), \(rows) rows, blocks \(list)")
                }
            }
        }
    }

    @Test("picked inputs agree with a layer of these inputs alone", arguments: InstructionSet.available, forms)
    func inputs(_ set: InstructionSet, _ form: Form) throws {
        let (features, depth) = (70, 600)
        let weight = try weight(form, features, depth)
        let bias = try Tensor<Float>.normal([features], seed: 5)
        let sparse = try SparseQuantizedLinear(
            QuantizedLinear(PackedWeight(weight, instructionSet: set), activation: form.activation, bias: bias),
            picking: .inputs)
        #expect(sparse.blockSize == form.format.groupSize ?? 128 && sparse.channels == depth)
        for list in [[0], [sparse.blocks - 1], Array(stride(from: 1, to: sparse.blocks, by: 2)), [0, 1, sparse.blocks - 1]] {
            let subset = try sparse.channels(ofBlocks: ChannelSubset(list.map { Int32($0) }, of: sparse.blocks))
            let picked = try self.picked(weight, subset)
            let alone = try QuantizedLinear(
                PackedWeight(picked, instructionSet: set), activation: form.activation, bias: bias)
            for rows in [1, 2, 9] {
                let x = try Tensor<Float>.normal([rows, subset.count], seed: 7)
                let expected = try alone(x)
                var y = try Tensor<Float>([rows, features]) { _ in .nan }
                try run(sparse, x, subset, into: &y)
                for index in 0..<y.count {
                    let (row, column) = (index / features, index % features)
                    var magnitude = Double(abs(bias[flat: column]))
                    for k in 0..<subset.count {
                        magnitude += Double(abs(x[flat: row * subset.count + k] * picked.value(row: column, column: k)))
                    }
                    // Codes are the same, so that only the sums are rounded in another order. Those of NVFP4 and of offsets have
                    // intermediate sums several times as large.
                    let bound = 4 * ReferenceMatrixProduct.errorBound(magnitude: magnitude, depth: subset.count)
                    #expect(
                        abs(Double(y[flat: index]) - Double(expected[flat: index])) <= bound,
                        "\(set), \(form.name), blocks \(list), \(rows) rows, element \(index)")
                    if form.activation == .float {
                        var exact = Double(bias[flat: column])
                        for k in 0..<subset.count {
                            exact += Double(x[flat: row * subset.count + k]) * Double(picked.value(row: column, column: k))
                        }
                        #expect(abs(Double(y[flat: index]) - exact) <= bound, "\(set), \(form.name), element \(index)")
                    }
                }
                for threads in [2, 7] {
                    var again = try Tensor<Float>(zeros: [rows, features])
                    try run(sparse, x, subset, into: &again, on: WorkerPool(threads: threads))
                    #expect(again.bits == y.bits)
                }
            }
        }
        let x = try Tensor<Float>(zeros: [2, 0])
        var y = try Tensor<Float>([2, features]) { _ in .nan }
        try run(sparse, x, ChannelSubset([], of: depth), into: &y)
        #expect(y.elements == bias.elements + bias.elements, "no inputs give the bias")
    }

    /// The weight of some columns, which are whole groups.
    private func picked(_ weight: QuantizedWeight, _ subset: ChannelSubset) throws -> QuantizedWeight {
        let bits = weight.format.code.bits
        let columns = weight.format.paddedInFeatures(subset.count)
        let (bytes, all) = (columns * bits / 8, weight.codes.shape[1])
        let perByte = 8 / bits
        let codes = try Tensor<UInt8>([weight.outFeatures, bytes]) { index in
            let (row, byte) = (index / bytes, index % bytes)
            if byte * perByte >= subset.count { return 0 }
            return weight.codes[flat: row * all + Int(subset.indices[byte * perByte]) / perByte]
        }
        func grouped(_ values: Tensor<Float>) throws -> Tensor<Float> {
            guard let size = weight.format.groupSize else { return values }
            let groups = (subset.count + size - 1) / size
            return try Tensor([weight.outFeatures, groups]) {
                values[flat: $0 / groups * weight.groups + Int(subset.indices[$0 % groups * size]) / size]
            }
        }
        return try QuantizedWeight(
            format: weight.format, inFeatures: subset.count, codes: codes, scales: grouped(weight.scales),
            offsets: weight.offsets.map { try grouped($0) }, channelScales: weight.channelScales)
    }

    @Test("parts of blocks are refused with the block size, and so are layers whose inputs cannot be picked")
    func errors() throws {
        let weight = try WeightQuantizer(.svdQuantInt4)(.normal([96, 200], seed: 3))
        let layer = try QuantizedLinear(PackedWeight(weight, instructionSet: .portable), activation: .float)
        let inputs = try SparseQuantizedLinear(layer, picking: .inputs)
        var y = try Tensor<Float>([1, 96]) { _ in 3 }
        let x = try Tensor<Float>(zeros: [1, 64])
        expectError(.invalidArgument, "channels", containing: "whole blocks of 64 inputs", "block 1", "position 64") {
            let subset = try ChannelSubset(Array(0..<100), of: 200)
            try run(inputs, Tensor(zeros: [1, 100]), subset, into: &y)
        }
        expectError(.invalidArgument, "channels", containing: "blocks of 64", "block 0") {
            let subset = try ChannelSubset(Array(1..<65), of: 200)
            try run(inputs, x, subset, into: &y)
        }
        expectError(.invalidShape, "channels", containing: "subset of 200", "of 96") {
            try run(inputs, x, ChannelSubset(all: 96), into: &y)
        }
        expectError(.invalidShape, "x", containing: "8 columns", "got 64") {
            // The last block is short.
            try run(inputs, x, ChannelSubset(Array(192..<200), of: 200), into: &y)
        }
        expectError(.invalidShape, "y", containing: "1 × 8", "1 × 96") {
            let outputs = try SparseQuantizedLinear(layer, picking: .outputs)
            try run(outputs, Tensor(zeros: [1, 200]), ChannelSubset(Array(0..<8), of: 96), into: &y)
        }
        expectError(.invalidShape, "blocks", containing: "subset of 4", "of 3") {
            _ = try inputs.channels(ofBlocks: ChannelSubset(all: 3))
        }
        #expect(y.elements == Array(repeating: 3, count: 96))
        let smoothed = try QuantizedLinear(
            PackedWeight(weight), activation: .float, smooth: Tensor([200]) { _ in 2 })
        expectError(.invalidArgument, "layer.smooth", containing: "nil", "200 factors") {
            _ = try SparseQuantizedLinear(smoothed, picking: .inputs)
        }
        let branch = try LowRankBranch(down: Tensor(zeros: [4, 200]), up: Tensor(zeros: [96, 4]))
        let split = try QuantizedLinear(PackedWeight(weight), activation: .float, lowRank: branch)
        expectError(.invalidArgument, "layer.rank", containing: "0 for", "got 4") {
            _ = try SparseQuantizedLinear(split, picking: .inputs)
        }
    }
}
