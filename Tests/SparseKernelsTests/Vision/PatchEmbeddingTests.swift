import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Patch embedding: the oracle at all sides, lists, parts of pictures, bytes, threads, NaN, borders, errors.
@Suite("Patch embedding")
struct PatchEmbeddingTests {
    /// Compares tokens with the products of the patches that `patches` names.
    static func expectMatch(
        _ y: Tensor<Float>, _ patches: [Int32], columns: Int, side: Int, weight: Tensor<Float>, bias: Tensor<Float>?,
        picture: (Int, Int, Int) -> Float, _ label: String
    ) {
        let (width, channels) = (weight.shape[0], weight.shape[1])
        let depth = channels * side * side
        var worst = (excess: 0.0, text: "")
        for flat in stride(from: 0, to: y.count, by: max(1, y.count / 200)) {
            let (row, column) = (flat / width, flat % width)
            let (top, left) = (Int(patches[row]) / columns * side, Int(patches[row]) % columns * side)
            let (sum, magnitude) = ReferenceMatrixProduct.element(
                row: row, column: column, depth: depth,
                a: { picture($1 / (side * side), top + $1 / side % side, left + $1 % side) },
                b: { weight[flat: $1 * depth + $0] })
            let shift = Double(bias?[flat: column] ?? 0)
            let bound =
                ReferenceMatrixProduct.errorBound(magnitude: magnitude + abs(shift), depth: depth + 1) + 0x1p-24
                * abs(sum + shift)
            let excess = abs(Double(y[flat: flat]) - sum - shift) - bound
            if !(excess <= worst.excess) { worst = (excess, "\(flat): \(y[flat: flat]), expected \(sum + shift) ± \(bound)") }
        }
        #expect(worst.text.isEmpty, "\(label): \(worst.text)")
    }

    @Test("agrees with the oracle", arguments: InstructionSet.available, [1, 2, 3, 4, 7, 8, 14, 15, 16, 17, 28])
    func matchesReference(_ set: InstructionSet, _ side: Int) throws {
        for (rows, columns, channels, width) in [(1, 1, 3, 5), (3, 4, 1, 33), (5, 2, 4, 70)] {
            let picture = try Tensor<Float>.normal([channels, rows * side + side - 1, columns * side], seed: 1)
            let weight = try Tensor<Float>.normal([width, channels, side, side], seed: 2)
            let bias = try Tensor<Float>.normal([width], seed: 3)
            for hasBias in [true, false] {
                let embedding = try PatchEmbedding(weight: weight, bias: hasBias ? bias : nil, instructionSet: set)
                #expect(embedding.grid(of: GridSize(rows: picture.shape[1], columns: picture.shape[2])).count == rows * columns)
                let y = try embedding(picture, on: .serial)
                #expect(y.shape == [rows * columns, width])
                Self.expectMatch(
                    y, (0..<Int32(rows * columns)).map { $0 }, columns: columns, side: side, weight: weight,
                    bias: hasBias ? bias : nil, picture: { picture[$0, $1, $2] }, "\(set), \(rows) × \(columns), p \(side)")
            }
        }
    }

    @Test("a row is the same in every list, part and batch", arguments: InstructionSet.available)
    func lists(_ set: InstructionSet) throws {
        let embedding = try PatchEmbedding(
            weight: Tensor<Float>.normal([40, 3, 14, 14], seed: 1), bias: .normal([40], seed: 2), instructionSet: set)
        let picture = try Tensor<Float>.normal([3, 14 * 13 + 5, 14 * 15 + 13], seed: 3)
        let all = try embedding(picture, on: .serial)
        #expect(all.shape == [13 * 15, 40])
        func rows(_ patches: [Int32]) -> [Float] {
            patches.flatMap { all.elements[Int($0) * 40..<Int($0) * 40 + 40] }
        }
        for patches: [Int32] in [[], [0], [194], [7, 3, 7, 194, 0], (0..<150).map { ($0 * 77) % 195 }] {
            for threads in [1, 2, 7] {
                let y = try embedding(picture, patches: patches, on: WorkerPool(threads: threads))
                #expect(y.shape == [patches.count, 40] && y.elements == rows(patches), "\(set), \(patches.count)")
            }
        }
        // Rows and columns of a larger matrix.
        let patches: [Int32] = [5, 6, 100]
        var large = try Tensor<Float>([9, 50]) { _ in 7 }
        let view = try picture.pictureView()
        var target = try large.mutableMatrixView()
        var part = target.rows(4..<7)
        try embedding.run(view, patches: patches, into: part.columns(6..<46))
        #expect(
            large.elements.indices.allSatisfy { index in
                let (row, column) = (index / 50 - 4, index % 50 - 6)
                let isInside = (0..<3).contains(row) && (0..<40).contains(column)
                return large[flat: index] == (isInside ? all[flat: Int(patches[row]) * 40 + column] : 7)
            })
        // A part of a picture has the patches that lie there: those of 28 rows and 14 columns further.
        let tile = try view.cropped(row: 28, column: 14, to: GridSize(rows: 14 * 3, columns: 14 * 4 + 9))
        var tokens = try Tensor<Float>(zeros: [12, 40])
        try embedding.run(tile, into: tokens.mutableMatrixView())
        let places: [Int32] = [31, 32, 33, 34, 46, 47, 48, 49, 61, 62, 63, 64]
        #expect(tokens.elements == rows(places), "\(set)")
    }

    @Test("weights of 16 bits are their values", arguments: InstructionSet.available)
    func halves(_ set: InstructionSet) throws {
        let weight = try Tensor<Float16>.normal([20, 3, 4, 4], seed: 1)
        let picture = try Tensor<Float>.normal([3, 12, 12], seed: 3)
        let y = try PatchEmbedding(weight: weight, instructionSet: set)(picture)
        #expect(try y.bits == PatchEmbedding(weight: weight.converted(to: Float.self), instructionSet: set)(picture).bits)
    }

    @Test("bytes are scaled and shifted per channel", arguments: InstructionSet.available)
    func bytes(_ set: InstructionSet) throws {
        let weight = try Tensor<Float>.normal([33, 3, 14, 14], seed: 1)
        let embedding = try PatchEmbedding(weight: weight, instructionSet: set)
        let picture = try Tensor<UInt8>([3, 45, 60]) { UInt8(truncatingIfNeeded: $0 &* 167 &+ $0 / 7) }
        let bytes = PatchEmbedding.ByteScale(mean: [0.5, 0.4, 0.3], deviation: [0.5, 0.25, 0.125])
        #expect(bytes.scale == [1 / 127.5, 1 / 63.75, 1 / 31.875] && bytes.offset[1] == -1.6)
        let floats = try Tensor<Float>([3, 45, 60]) {
            let channel = $0 / 2700
            return bytes.scale[channel] * Float(picture[flat: $0]) + bytes.offset[channel]
        }
        #expect(try embedding(picture, bytes: bytes).bits == embedding(floats).bits, "\(set)")
        #expect(try embedding(picture, bytes: bytes, patches: [11, 2]).bits == embedding(floats, patches: [11, 2]).bits)
    }

    @Test("a NaN spoils the token of its patch only", arguments: InstructionSet.available)
    func nonFinite(_ set: InstructionSet) throws {
        let embedding = try PatchEmbedding(weight: Tensor<Float>.normal([20, 2, 5, 5], seed: 1), instructionSet: set)
        var picture = try Tensor<Float>.normal([2, 33, 27], seed: 3)
        let clean = try embedding(picture)
        picture[1, 12, 14] = .nan
        // Outside of every patch.
        picture[0, 32, 3] = .nan
        picture[0, 3, 26] = .nan
        let y = try embedding(picture)
        for row in 0..<30 {
            for column in 0..<20 {
                let isSpoiled = row == 2 * 5 + 2
                #expect(isSpoiled ? y[row, column].isNaN : y[row, column] == clean[row, column], "\(set)")
            }
        }
    }

    @Test("nothing outside the picture and the tokens is touched")
    func bordersAreKept() async {
        await #expect(processExitsWith: .success) {
            for set in InstructionSet.available {
                for side in [1, 3, 4, 9, 14, 16, 19] {
                    let embedding = try PatchEmbedding(
                        weight: Tensor<Float>.normal([9, 2, side, side], seed: 1), instructionSet: set)
                    for fencesEnd in [false, true] {
                        let x = FencedMemory([Float](repeating: 1, count: 2 * 6 * side * side), fencesEnd: fencesEnd)
                        let b = FencedMemory([UInt8](repeating: 1, count: 2 * 6 * side * side), fencesEnd: fencesEnd)
                        let y = FencedMemory([Float](repeating: .nan, count: 6 * 9), fencesEnd: fencesEnd)
                        let size = GridSize(rows: 2 * side, columns: 3 * side)
                        try embedding.run(
                            PictureView(x.elements.span, channels: 2, size: size),
                            into: MutableMatrixView(y.elements.mutableSpan, rows: 6, columns: 9))
                        try embedding.run(
                            PictureView(b.elements.span, channels: 2, size: size),
                            bytes: .init(scale: [1, 1], offset: [0, 0]),
                            into: MutableMatrixView(y.elements.mutableSpan, rows: 6, columns: 9))
                        #expect(y.elements.allSatisfy { !$0.isNaN }, "\(set)")
                    }
                }
            }
        }
    }

    @Test("weights, pictures and lists that do not fit are refused", arguments: InstructionSet.available)
    func errors(_ set: InstructionSet) throws {
        for shape in [[4, 3, 2], [4, 3, 2, 3], [0, 3, 2, 2], [4, 0, 2, 2], [4, 3, 0, 0]] {
            expectError(.invalidShape, "weight", containing: ["\(shape)"]) {
                _ = try PatchEmbedding(weight: Tensor<Float>(zeros: shape), instructionSet: set)
            }
        }
        let embedding = try PatchEmbedding(weight: Tensor<Float>.normal([5, 3, 4, 4], seed: 1), instructionSet: set)
        expectError(.invalidShape, "bias", containing: ["[5]", "[4]"]) {
            _ = try PatchEmbedding(
                weight: Tensor<Float>.normal([5, 3, 4, 4], seed: 1), bias: Tensor(zeros: [4]), instructionSet: set)
        }
        expectError(.invalidShape, "picture", containing: ["3 channels", "2"]) {
            _ = try embedding(Tensor<Float>(zeros: [2, 8, 8]))
        }
        expectError(.invalidShape, "picture", containing: ["4 × 4", "3 × 9"]) {
            _ = try embedding(Tensor<Float>(zeros: [3, 3, 9]))
        }
        expectError(.invalidShape, "picture.size", containing: ["0 × 9"]) {
            _ = try embedding(Tensor<Float>(zeros: [3, 0, 9]))
        }
        let picture = try Tensor<Float>.normal([3, 9, 8], seed: 2)
        for (patches, place): ([Int32], Int) in [([0, 4], 1), ([-1], 0), ([0, 1, .max], 2)] {
            expectError(.invalidArgument, "patches", containing: ["0..<4", "\(patches[place])", "place \(place)"]) {
                _ = try embedding(picture, patches: patches)
            }
        }
        let view = try picture.pictureView()
        var y = try Tensor<Float>([3, 5]) { _ in 7 }
        expectError(.invalidShape, "y", containing: ["4 × 5", "3 × 5"]) { try embedding.run(view, into: y.mutableMatrixView()) }
        expectError(.invalidShape, "y", containing: ["2 × 5", "3 × 5"]) {
            try embedding.run(view, patches: [0, 1], into: y.mutableMatrixView())
        }
        let bytes = try Tensor<UInt8>(zeros: [3, 8, 8])
        expectError(.invalidShape, "bytes.scale", containing: ["3 numbers", "2"]) {
            _ = try embedding(bytes, bytes: .init(scale: [1, 1], offset: [0, 0, 0]))
        }
        expectError(.invalidArgument, "bytes.offset", containing: ["nan"]) {
            _ = try embedding(bytes, bytes: .init(scale: [1, 1, 1], offset: [0, .nan, 0]))
        }
        #expect(y.elements.allSatisfy { $0 == 7 })
    }
}
