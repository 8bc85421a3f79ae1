import SVDQuant
import SparseKernelsReference
import TestSupport
import Testing

@Suite("The layout of nunchaku")
struct NunchakuLayoutTests {
    @Test("known places")
    func examples() {
        // Word 3104, low nibble; words 19 and 144 of the specification.
        #expect(NunchakuLayout.codeByte(row: 130, column: 70, inFeatures: 128) == 4 * 3104 + 3)
        #expect(NunchakuLayout.codeByte(row: 9, column: 32, inFeatures: 64) == 76)
        #expect(NunchakuLayout.codeByte(row: 17, column: 0, inFeatures: 64) == 576)
        #expect([9, 10, 17].map(NunchakuLayout.vectorIndex) == [3, 6, 17])
        #expect(NunchakuLayout.microScaleIndex(row: 37, group: 5, groups: 8) == 837)
        #expect(NunchakuLayout.downIndex(rank: 20, input: 40, ranks: 32) == 1410)
        #expect(NunchakuLayout.upIndex(output: 40, rank: 20, ranks: 32) == 1300)
        #expect(NunchakuLayout.downIndex(rank: 3, input: 5, ranks: 32) == 113)
        #expect(NunchakuLayout.upIndex(output: 3, rank: 5, ranks: 32) == 113)
    }

    @Test("every place is used once")
    func bijections() {
        func check(_ name: String, _ rows: Int, _ columns: Int, _ index: (Int, Int) -> Int) {
            var isUsed = [Bool](repeating: false, count: rows * columns)
            for row in 0..<rows { for column in 0..<columns { isUsed[index(row, column)] = true } }
            #expect(isUsed.allSatisfy { $0 }, "\(name)")
        }
        check("codes", 256, 64) { NunchakuLayout.codeByte(row: $0, column: 2 * $1, inFeatures: 128) }
        check("vector", 256, 1) { n, _ in NunchakuLayout.vectorIndex(n) }
        check("scales", 256, 4) { NunchakuLayout.scaleIndex(row: $0, group: $1, groups: 4) }
        check("micro scales", 256, 8) { NunchakuLayout.microScaleIndex(row: $0, group: $1, groups: 8) }
        check("down", 32, 128) { NunchakuLayout.downIndex(rank: $0, input: $1, ranks: 32) }
        check("up", 256, 32) { NunchakuLayout.upIndex(output: $0, rank: $1, ranks: 32) }
        check("modulation", 8, 128) { row, nibble in
            let (byte, isHigh) = NunchakuLayout.modulationByte(row: row, column: nibble, inFeatures: 128)
            return 2 * byte + (isHigh ? 1 : 0)
        }
    }

    @Test("unpacking undoes packing, and padding is what was asked for", arguments: [(1, 2, 1), (130, 70, 17), (256, 128, 32)])
    func roundTrips(_ extents: (rows: Int, bytes: Int, rank: Int)) throws {
        let (rows, bytes, rank) = extents
        func expect<Element: TensorElement & Equatable>(
            _ result: Tensor<Element>, _ original: Tensor<Element>, fill: Element, tiles: (Int, Int)
        ) {
            let (columns, width) = (
                original.shape.count == 2 ? original.shape[1] : 1, result.shape.count == 2 ? result.shape[1] : 1
            )
            #expect(result.shape[0] == (original.shape[0] + tiles.0 - 1) / tiles.0 * tiles.0)
            #expect(width == (columns + tiles.1 - 1) / tiles.1 * tiles.1)
            for index in 0..<result.count {
                let (row, column) = (index / width, index % width)
                let inside = row < original.shape[0] && column < columns
                #expect(result[flat: index] == (inside ? original[flat: row * columns + column] : fill))
            }
        }
        var generator = SplitMix64(seed: 1)
        let codes = try Tensor<UInt8>([rows, bytes]) { _ in UInt8(truncatingIfNeeded: generator.next()) }
        expect(try NunchakuLayout.unpackedCodes(NunchakuLayout.packedCodes(codes)), codes, fill: 0, tiles: (128, 64))
        let scales = try Tensor<Float>.normal([rows, 3], seed: 2)
        expect(
            try NunchakuLayout.unpackedScales(NunchakuLayout.packedScales(scales, filling: 1)), scales, fill: 1, tiles: (128, 2)
        )
        expect(
            try NunchakuLayout.unpackedMicroScales(NunchakuLayout.packedMicroScales(codes, filling: 56)), codes, fill: 56,
            tiles: (128, 4))
        let vector = try Tensor<Float>.normal([rows], seed: 2)
        expect(
            try NunchakuLayout.unpackedVector(NunchakuLayout.packedVector(vector, filling: 1)), vector, fill: 1, tiles: (128, 1)
        )
        let down = try Tensor<Float>.normal([rank, rows], seed: 3)
        expect(try NunchakuLayout.unpackedDown(NunchakuLayout.packedDown(down)), down, fill: 0, tiles: (16, 128))
        let up = try Tensor<Float>.normal([rows, rank], seed: 4)
        expect(try NunchakuLayout.unpackedUp(NunchakuLayout.packedUp(up)), up, fill: 0, tiles: (128, 16))
    }

    @Test("shapes that are not whole tiles are errors")
    func badShapes() throws {
        for shape in [[128], [127, 64], [128, 63], [0, 64], [128, 0]] {
            expectError(.invalidShape, "codes") { _ = try NunchakuLayout.unpackedCodes(Tensor(zeros: shape)) }
        }
        expectError(.invalidShape, "codes") { _ = try NunchakuLayout.packedCodes(Tensor(zeros: [0, 4])) }
        expectError(.invalidShape, "scales") {
            _ = try NunchakuLayout.unpackedScales(Tensor<Float>(zeros: [3, 128]))
        }
        expectError(.invalidShape, "scales") {
            _ = try NunchakuLayout.unpackedMicroScales(Tensor<UInt8>(zeros: [6, 128]))
        }
        expectError(.invalidShape, "vector") { _ = try NunchakuLayout.unpackedVector(Tensor<Float>(zeros: [64])) }
        expectError(.invalidShape, "down") { _ = try NunchakuLayout.unpackedDown(Tensor<Float>(zeros: [128, 17])) }
        expectError(.invalidShape, "up") { _ = try NunchakuLayout.unpackedUp(Tensor<Float>(zeros: [100, 16])) }
    }
}
