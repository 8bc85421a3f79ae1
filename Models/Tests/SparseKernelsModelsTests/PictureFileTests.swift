import Foundation
import SparseKernels
import SparseKernelsModels
import Testing

@Suite("Pictures as files")
struct PictureFileTests {
    /// A picture with long runs, repeated rows and noise.
    static func picture(_ rows: Int, _ columns: Int, _ samples: Picture.Samples, seed: UInt64 = 1) throws -> Picture {
        var random = SplitMix64(seed: seed)
        let bytes = (0..<rows * columns * samples.count).map { index -> UInt8 in
            let row = index / (columns * samples.count)
            if row % 3 == 0 { return UInt8(truncatingIfNeeded: random.next()) }
            return row % 3 == 1 ? 77 : UInt8(truncatingIfNeeded: index % 41 * 3)
        }
        return try Picture(GridSize(rows: rows, columns: columns), samples, bytes: bytes)
    }

    @Test("what is written is read again, in all kinds and awkward sizes", arguments: Picture.Samples.allCases)
    func roundTrips(_ samples: Picture.Samples) throws {
        for (rows, columns) in [(1, 1), (1, 300), (300, 1), (2, 3), (7, 5), (40, 33), (3, 1000)] {
            let picture = try Self.picture(rows, columns, samples)
            #expect(try Picture(png: picture.png()) == picture, "\(rows) × \(columns)")
            let ppm = try Picture(ppm: picture.ppm())
            #expect(ppm == (samples == .grey ? picture : picture.rgb()))
        }
    }

    @Test("a picture in few colours is written with a palette, and many are not")
    func palettes() throws {
        for colours in [1, 2, 255, 256, 257, 300] {
            let bytes = (0..<20 * 31).flatMap { pixel -> [UInt8] in
                let colour = pixel * 7 % colours
                return [UInt8(colour % 256), UInt8(colour / 256), 5]
            }
            let picture = try Picture(GridSize(rows: 20, columns: 31), .rgb, bytes: bytes)
            let file = picture.png()
            // The colour type is byte 25.
            #expect(file[25] == (colours <= 256 ? 3 : 2), "\(colours) colours")
            #expect(try Picture(png: file) == picture, "\(colours) colours")
        }
    }

    @Test("matches of every length and distance come back")
    func matches() throws {
        // Rows of a period, so that matches overlap themselves; and copies of noise from far away.
        var random = SplitMix64(seed: 4)
        var bytes: [UInt8] = []
        for period in [1, 2, 3, 4, 5, 7, 8, 9, 30, 66, 258, 300] {
            let unit = (0..<period).map { _ in UInt8(truncatingIfNeeded: random.next()) }
            for repeats in [2, 3, 100] { for _ in 0..<repeats { bytes += unit } }
        }
        let noise = (0..<3000).map { _ in UInt8(truncatingIfNeeded: random.next()) }
        for distance in [0, 40, 700, 9000, 30_000, 40_000] {
            bytes += noise[..<Int(3 + random.next() % 600)]
            bytes += Array(repeating: 9, count: distance)
            bytes += noise
        }
        let picture = try Picture(GridSize(rows: 1, columns: bytes.count), .grey, bytes: bytes)
        let file = picture.png()
        #expect(try Picture(png: file) == picture)
        #expect(file.count < bytes.count / 3)
        let flat = try Picture(GridSize(rows: 300, columns: 500), .grey, bytes: Array(repeating: 3, count: 150_000))
        #expect(flat.png().count < 2000)
    }

    /// Files of other programs, with the samples that they hold, which a widely used library agrees on.
    static let foreign: [(name: String, rows: Int, columns: Int, samples: Picture.Samples, file: String, bytes: String)] = [
        (
            "interlaced colours", 5, 4, .rgb,
            "iVBORw0KGgoAAAANSUhEUgAAAAQAAAAFCAIAAAGayOoaAAAAG0lEQVR42gFGALn/AnmDwQK/9hcC0vI/A4PNmgLRVHPnxj4HAAAANklEQVQfdPoC8wgkT95sA1AbO5bkCwTwLD0H8G4CRdNBaKSMFQfdwNaJA8XLYJyZOuNBsRWPdyYyHq6yvA2AAAAAAElFTkSuQmCC",
            "eYPB8wgk0vI/T95sRdNBaKSMFQfdwNaJ0VRzyR9NH3T6ImJn5zSAQwXAD0d/fB37v/YXuUuK7Ea5KVL4"
        ),
        (
            "interlaced, 2 bits", 9, 7, .grey,
            "iVBORw0KGgoAAAANSUhEUgAAAAcAAAAJAgAAAAHmhEFIAAAAEUlEQVR42mNyYF7A5MCcwJTAFMDcwWNx5YkAAAAiSURBVHKAaSvzfKYOZh+WCIYzjFeYbl9g9n/HwsbDIPAGAOBoC7zmRTHZAAAAAElFTkSuQmCC",
            "VapVAFWqVf9Vqv//VQCqqv9VVQBVqv//AKr/VVX/qqqqqv//AACq/wCq////AKr/VQBVAAD/qv///1VVqlX/"
        ),
        (
            "16 bits, grey with opacity", 3, 2, .greyAlpha,
            "iVBORw0KGgoAAAANSUhEUgAAAAIAAAADEAQAAABDc8pJAAAADElEQVR42gEbAOT/AQHQ1paRLRBtAAAAGklEQVSkfWpGArd7kyUwmr+wA+wERPepkPbaqHQNbDr1/SYAAAAASUVORK5CYII=",
            "AtalQbhp1f9IeDex"
        ),
        (
            "1 bit", 3, 11, .grey,
            "iVBORw0KGgoAAAANSUhEUgAAAAsAAAADAQAAAABthMjmAAAABUlEQVR42mP8o3GAgqAAAAAMSURBVMK014HZ1wYADooCreLRyu4AAAAASUVORK5CYII=",
            "////////AAAAAP//AP///wAA/wD///8A/wD/AAD///8A"
        ),
        (
            "16 bits, interlaced, with opacity", 3, 3, .rgba,
            "iVBORw0KGgoAAAANSUhEUgAAAAMAAAADEAYAAAFxv1lqAAAAHUlEQVR42gFOALH/At8l1M5QgxAOAiVMYAnB1VEVApweG55yg1AAAAA8SURBVB1dOKIWgTWnYyjMbmQCxZnTU3XrKh0DYiT4OszQpJ4CCBCw+76FLbaPeGVxgE8BfaJ1QzKN7GvTmfEgV25DIT0AAAAASUVORK5CYII=",
            "3tRQEMXTdSolYMFRCLC+Lo9lgAGiQ41rnBtdocRhBrmBpylu"
        ),
        (
            "palette of 2 bits with opacity", 3, 5, .rgba,
            "iVBORw0KGgoAAAANSUhEUgAAAAUAAAADAgMAAAAmWC1rAAAACVBMVEX/AAAAgAAJCAcipnE9AAAAAnRSTlMATX7+8BUAAAAJdEVYdENvbW1lbnQAeNf0dAgAAAARSURBVHicY1wYz/TUgdl9NgAOagMOTWtI3AAAAABJRU5ErkJggg==",
            "CQgH/wkIB///AAAAAIAATf8AAAAJCAf//wAAAACAAE0JCAf/AIAATQkIB///AAAACQgH/wkIB///AAAA"
        ),
    ]

    static func bytes(_ base64: String) -> [UInt8] { Data(base64Encoded: base64).map(Array.init) ?? [] }

    @Test("files of other programs are read: interlaced, of 1, 2 and 16 bits, with every filter, palettes with opacity")
    func others() throws {
        for file in Self.foreign {
            let picture = try Picture(png: Self.bytes(file.file))
            #expect(picture.size == GridSize(rows: file.rows, columns: file.columns) && picture.samples == file.samples)
            #expect(picture.bytes == Self.bytes(file.bytes), "\(file.name)")
        }
    }

    @Test("PPM headers may have comments and samples of other ranges")
    func ppm() throws {
        let comment = Array("P6 # colours\n# two\n 2\t1 \n 255\n".utf8)
        #expect(try Picture(ppm: comment + [1, 2, 3, 4, 5, 6]).bytes == [1, 2, 3, 4, 5, 6])
        #expect(try Picture(ppm: Array("P5\n3 1\n5\n".utf8) + [0, 2, 5]).bytes == [0, 102, 255])
        #expect(try Picture(ppm: Array("P5\n2 1\n65535\n".utf8) + [0xff, 0xff, 0x80, 0x00]).bytes == [255, 128])
        for (text, fragments) in [
            ("P3\n1 1\n255\n1", ["P6 or P5"]), ("P6\n0 1\n255\n", ["columns from 1", "0"]),
            ("P6\n2 9999999\n255\n", ["rows", "9999999"]), ("P6\n1 1\n70000\n", ["65535", "70000"]), ("P6\n1 1", ["sample"]),
            ("P6\n1 1\n255", ["white space"]), ("P6\nx", ["no number"]), ("P6\n2 2\n255\nabc", ["12 bytes", "3"]),
            ("P6\n1000000 1000000\n255\n", ["pixels"]), ("P5\n1 1\n3\nz", ["at most 3", "122"]),
            ("P6\n# never ends", ["columns"]),
            ("P6\n99999999999999999999 1\n255\n", ["columns"]),
        ] {
            let error = #expect(throws: SparseKernelsError.self) { try Picture(ppm: Array(text.utf8), named: "p.ppm") }
            #expect(error?.code == .malformedFile && error?.argument == "p.ppm", "\(text)")
            for fragment in fragments { #expect(error!.description.contains(fragment), "\(error!)") }
        }
    }

    @Test("files are found by their first bytes and written as a whole")
    func files() throws {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent("pictures-\(UUID().uuidString)").path
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: folder) }
        let picture = try Self.picture(9, 8, .rgb)
        try picture.writePNG(to: folder + "/a.png")
        try picture.writePPM(to: folder + "/b")
        #expect(try Picture(path: folder + "/a.png") == picture && Picture(path: folder + "/b") == picture)
        try Data("GIF89a".utf8).write(to: URL(fileURLWithPath: folder + "/c"))
        for (path, code) in [("/c", SparseKernelsError.Code.malformedFile), ("/none", .inputOutput), ("", .inputOutput)] {
            let error = #expect(throws: SparseKernelsError.self) { try Picture(path: folder + path) }
            #expect(error?.code == code && error?.argument == folder + path)
        }
        let error = #expect(throws: SparseKernelsError.self) { try picture.writePNG(to: folder + "/no/file.png") }
        #expect(error?.code == .inputOutput && error?.argument == folder + "/no/file.png")
    }

    @Test("opacity is mixed with a background, and planes are normalised")
    func planes() throws {
        let size = GridSize(rows: 1, columns: 2)
        let picture = try Picture(size, .rgba, bytes: [10, 20, 30, 255, 200, 100, 0, 51])
        #expect(picture.rgb().bytes == [10, 20, 30, 244, 224, 204])
        #expect(picture.rgb(over: Picture.Colour(0, 0, 0)).bytes == [10, 20, 30, 40, 20, 0])
        let grey = try Picture(size, .greyAlpha, bytes: [90, 255, 0, 0])
        #expect(grey.rgb().bytes == [90, 90, 90, 255, 255, 255])
        let planes = try picture.planes(mean: [0, 0.5, 0.25], deviation: [1, 0.5, 2], on: WorkerPool(threads: 3))
        #expect(planes.shape == [3, 1, 2])
        let expected: [Float] = [
            10 / 255, 244 / 255, (20 / 255 - 0.5) / 0.5, (224 / 255 - 0.5) / 0.5, (30 / 255 - 0.25) / 2,
            (204 / 255 - 0.25) / 2,
        ]
        #expect(planes.elements == expected)
        #expect(throws: SparseKernelsError.self) { try picture.planes(mean: [1]) }
        #expect(throws: SparseKernelsError.self) { try picture.planes(deviation: [1, 0, 1]) }
        #expect(throws: SparseKernelsError.self) { try Picture(size, .rgb, bytes: [1]) }
        for (rows, columns) in [(0, 1), (1, -1), (1 << 21, 1), (1 << 20, 1 << 20)] {
            #expect(throws: SparseKernelsError.self) {
                try Picture(GridSize(rows: rows, columns: columns), filledWith: Picture.Colour(0, 0, 0))
            }
        }
    }

    @Test("pictures are resized as image processors do, and for people by means or copies")
    func resizing() throws {
        let picture = try Self.picture(12, 18, .rgb)
        let same = try picture.planes(resizedTo: picture.size)
        #expect(same == (try picture.planes()))
        let size = GridSize(rows: 5, columns: 9)
        let expected = try ImageResize(picture.size, to: size, filter: .bicubic, antialias: true)(picture.planes())
        #expect(try picture.planes(resizedTo: size) == expected)
        let half = try picture.resized(to: GridSize(rows: 6, columns: 9))
        let sum = (0..<2).flatMap { row in (0..<2).map { Int(picture[row, $0].red) } }.reduce(0, +)
        #expect(abs(Int(half[0, 0].red) * 4 - sum) <= 2)
        let large = try picture.resized(to: GridSize(rows: 24, columns: 36))
        #expect(large[23, 35] == picture[11, 17] && large[4, 6] == picture[2, 3])
        #expect(throws: SparseKernelsError.self) { try picture.resized(to: GridSize(rows: 0, columns: 3)) }
    }
}
