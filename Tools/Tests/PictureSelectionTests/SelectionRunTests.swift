import ArgumentParser
import Foundation
import SparseKernels
import SparseKernelsModels
import Testing

@testable import PictureSelection
@testable import SparseVisionTool

@Suite("Selecting patches of a picture")
struct SelectionRunTests {
    static func model(budget: Int = 24) throws -> PS3VisionModel {
        let c = VisionTransformerConfiguration(
            imageSize: 56, patchSize: 14, layer: VisionLayerConfiguration(width: 32, heads: 2, hidden: 64), layers: 2)
        return try PS3VisionModel(VisionTransformerWeights(c, seed: 3), sides: [56, 112, 224], budget: budget)
    }

    /// A grey picture with a square of noise, in which a box of it and the grey differ.
    static func picture() throws -> Picture {
        var picture = try Picture(GridSize(side: 224), filledWith: Picture.Colour(120, 120, 120))
        var random = SplitMix64(seed: 2)
        for row in 112..<168 {
            for column in 56..<112 {
                let value = UInt8(random.next() % 256)
                picture[row, column] = Picture.Colour(value, UInt8(random.next() % 256), 255 - value)
            }
        }
        return picture
    }

    @Test("what resembles a region is selected, and so is what stands out")
    func prompts() throws {
        let model = try Self.model()
        let planes = try Self.picture().planes()
        // The noise is one cell of four by four at low resolution: row 2, column 1.
        for prompt in [
            SelectionRun.Prompt.like(PictureBox(x: 60, y: 120, width: 40, height: 40)), .standingOut,
        ] {
            let run = try SelectionRun(model, planes: planes, prompt: prompt)
            let scores = run.map.probabilities.elements
            #expect(scores.indices.max { scores[$0] < scores[$1] } == 2 * 4 + 1, "\(prompt)")
            #expect(run.selection.count == 24 && run.tokens == 16 + 24)
            // All four patches of the first scale and all sixteen of the second one that the noise covers.
            let (first, second) = (run.selection.cells[0], run.selection.cells[1])
            for row in 4..<6 { for column in 2..<4 { #expect(first.contains(Int32(row * 8 + column))) } }
            for row in 8..<12 { for column in 4..<8 { #expect(second.contains(Int32(row * 16 + column))) } }
            let rows = try run.scaleRows(of: model)
            #expect(rows.map(\.side) == [112, 224] && rows.map(\.selected) == rows.map(\.budget))
        }
    }

    @Test("more passes take other patches, and no more than there are")
    func passes() throws {
        let model = try Self.model(budget: 200)
        let planes = try Self.picture().planes()
        var parts: [String] = []
        let two = try SelectionRun(model, planes: planes, prompt: .standingOut, passes: 2) { parts.append($0) }
        #expect(two.selection.count == 320 && two.tokens == 336, "64 and 256 patches are all")
        #expect(parts == ["low resolution", "selection", "pass 1", "pass 2"])
        for prompt in [
            SelectionRun.Prompt.like(PictureBox(x: 0, y: 0, width: 0, height: 3)),
            .like(PictureBox(x: 220, y: 0, width: 5, height: 3)), .like(PictureBox(x: -1, y: 0, width: 5, height: 3)),
        ] {
            let error = #expect(throws: SparseKernelsError.self) { try SelectionRun(model, planes: planes, prompt: prompt) }
            #expect(error?.argument == "box")
        }
        let error = #expect(throws: SparseKernelsError.self) {
            try SelectionRun(model, planes: planes, prompt: .standingOut, passes: 0)
        }
        #expect(error?.argument == "passes")
    }

    @Test("pictures of the selection have the size that is asked for, and a frame around the region")
    func overlays() throws {
        let model = try Self.model()
        let picture = try Self.picture()
        let box = PictureBox(x: 60, y: 120, width: 40, height: 40)
        let run = try SelectionRun(model, planes: picture.planes(), prompt: .like(box))
        let pictures = try SelectionPictures(run, of: model, over: picture, longerSide: 112, box: box).all
        #expect(pictures.map(\.name) == ["scores", "112", "224"])
        #expect(pictures.allSatisfy { $0.picture.size == GridSize(side: 112) })
        #expect(pictures[0].picture[60, 30] == Picture.Colour(255, 255, 255))
        #expect(throws: SparseKernelsError.self) { try SelectionPictures(run, of: model, over: picture, longerSide: 0) }
    }

    private func refusal(_ arguments: [String]) -> String {
        do {
            _ = try SparseVisionCommand.parseAsRoot(arguments)
            return ""
        } catch {
            return SparseVisionCommand.message(for: error)
        }
    }

    @Test("wrong options are refused with what is expected")
    func options() {
        #expect(refusal(["select", "a.png"]) == "" && refusal(["encode", "a.png", "--native"]) == "")
        #expect(refusal(["select", "a.png", "--scales", "378"]).contains("two or more numbers"))
        #expect(refusal(["select", "a.png", "--scales", "378,x"]).contains("two or more numbers"))
        #expect(refusal(["select", "a.png", "--like", "1,2,3"]).contains("x,y,width,height"))
        #expect(refusal(["select", "a.png", "--overlay-size", "0"]).contains("--overlay-size takes"))
        #expect(refusal(["select", "a.png", "--heads", "5"]).contains("a multiple of --heads"))
        #expect(refusal(["select", "a.png", "--layers", "0"]).contains("--layers takes 1 to 256"))
        #expect(refusal(["encode", "a.png", "--threads", "0"]).contains("--threads takes 1 or more"))
        #expect(refusal(["encode", "a.png", "--linear", "w4"]).contains("--linear"))
    }

    @Test("a run of the command writes its pictures, and an encoding its tensors")
    func commands() throws {
        let folder = NSTemporaryDirectory() + "sparse-vision-\(UUID().uuidString)"
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: folder) }
        try Self.picture().writePNG(to: folder + "/a.png")
        let model = ["--width", "32", "--heads", "2", "--layers", "2"]
        var select = try #require(
            try SparseVisionCommand.parseAsRoot(
                ["select", folder + "/a.png", "--scales", "56,112", "--budget", "20", "--like", "60,120,30,30"] + model)
                as? SelectCommand)
        try select.run()
        #expect(FileManager.default.fileExists(atPath: folder + "/a-scores.png"))
        #expect(try Picture(path: folder + "/a-112.png").size == GridSize(side: 224))
        var encode = try #require(
            try SparseVisionCommand.parseAsRoot(
                ["encode", folder + "/a.png", "--native", "--out", folder + "/a.safetensors"] + model) as? EncodeCommand)
        try encode.run()
        let file = try SafetensorsFile(path: folder + "/a.safetensors")
        #expect(try file.entry(named: "tokens").shape == [256, 32])
    }
}
