import ArgumentParser
import PictureSelection
import SparseKernels
import SparseKernelsModels

/// `sparse-vision draw`.
struct DrawCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "draw",
        abstract: "Draws a desk with a map, a letter, a note and a ruler, whose writing is small, as a PNG or PPM file.")

    @Option(help: "Rows and columns in pixels, or rows × columns as 1080x1920.")
    var size = "1512"

    @Argument(help: "The file to write; a name that ends with .ppm makes a PPM file.")
    var output: String

    func validate() throws {
        guard GridSize(pixels: size) != nil else {
            throw ValidationError("--size must be a number of pixels, or rows x columns such as 1080x1920, got \"\(size)\"")
        }
    }

    func run() throws {
        let picture = try DeskScene().picture(GridSize(pixels: size)!)
        if output.hasSuffix(".ppm") { try picture.writePPM(to: output) } else { try picture.writePNG(to: output) }
        print("\(output): \(picture.size) pixels")
    }
}

extension GridSize {
    /// Reads "1512" or "1080x1920".
    init?(pixels text: String) {
        let parts = text.split(separator: "x", omittingEmptySubsequences: false).map { Int($0) }
        switch parts.count {
        case 1:
            guard let side = parts[0], side >= 1 else { return nil }
            self.init(side: side)
        case 2:
            guard let rows = parts[0], let columns = parts[1], rows >= 1, columns >= 1 else { return nil }
            self.init(rows: rows, columns: columns)
        default: return nil
        }
    }
}
