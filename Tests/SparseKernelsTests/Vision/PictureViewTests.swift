import SparseKernels
import TestSupport
import Testing

/// Views of pictures: strides, parts, and sizes that do not fit their memory.
@Suite("Picture views")
struct PictureViewTests {
    @Test("elements are those of the planes, and of the part")
    func elements() throws {
        let picture = try Tensor<Float>([2, 5, 7]) { Float($0) }
        let view = try picture.pictureView()
        #expect(view.channels == 2 && view.size == GridSize(rows: 5, columns: 7) && view.planeStride == 35)
        let part = try view.cropped(row: 1, column: 2, to: GridSize(rows: 3, columns: 4)).cropped(
            row: 1, column: 1, to: GridSize(rows: 2, columns: 3))
        for channel in 0..<2 {
            for row in 0..<2 {
                for column in 0..<3 { #expect(part[channel, row, column] == picture[channel, row + 2, column + 3]) }
            }
        }
        let plane = try Tensor<UInt8>([3, 4]) { UInt8($0) }
        #expect(try plane.pictureView()[0, 2, 3] == 11)
    }

    @Test("strides that overlap and memory that is too small are refused")
    func errors() throws {
        let elements = [Float](repeating: 0, count: 100)
        let size = GridSize(rows: 4, columns: 5)
        expectError(.invalidShape, "picture.size", containing: "0 × 5") {
            _ = try PictureView(elements.span, channels: 1, size: GridSize(rows: 0, columns: 5))
        }
        expectError(.invalidShape, "picture.channels", containing: "-1") {
            _ = try PictureView(elements.span, channels: -1, size: size)
        }
        expectError(.invalidStride, "picture.rowStride", containing: "5", "4") {
            _ = try PictureView(elements.span, channels: 1, size: size, rowStride: 4)
        }
        expectError(.invalidStride, "picture.planeStride", containing: "20", "19") {
            _ = try PictureView(elements.span, channels: 2, size: size, planeStride: 19)
        }
        expectError(.invalidShape, "picture", containing: "120", "100") {
            _ = try PictureView(elements.span, channels: 6, size: size)
        }
        for stride in [Int.max, Int.max / 3] {
            expectError(.invalidShape, "picture") {
                _ = try PictureView(elements.span, channels: 1, size: size, rowStride: stride)
            }
        }
        let view = try PictureView(elements.span, channels: 5, size: size)
        for (row, column, part) in [
            (1, 0, size), (0, 1, size), (-1, 0, GridSize(side: 2)), (0, Int.min, GridSize(side: 2)),
            (Int.max, 0, GridSize(side: 2)),
        ] {
            expectError(.invalidShape, "part", containing: "4 × 5") { _ = try view.cropped(row: row, column: column, to: part) }
        }
        expectError(.invalidShape, "part", containing: "0 × 0") {
            _ = try view.cropped(row: 0, column: 0, to: GridSize(side: 0))
        }
        expectError(.invalidShape, "picture", containing: "[2, 2, 2, 2]") {
            let batch = try Tensor<Float>(zeros: [2, 2, 2, 2])
            _ = try batch.pictureView()
        }
    }
}
